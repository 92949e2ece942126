"""What the Mosaic GPU kernels share: launching, rings of stages, tokens and masks, products.

The blocks of a kernel own some rows and visit others. Each warpgroup but the last consumes: it owns
64 rows and computes. The last one produces: it fills the stages of a ring, which all consumers then
give free. With each block lie its tokens, [3, size]: indices, segments and marks (`beside`).

jax's interpreter (0.10.2 and 0.12) runs TMA, barriers, warpgroups, scalar reads of GMEM, loops and
branches, and finds races; but no wgmma with an operand in registers or onto sums that are not zero,
0.10.2 none with a transposed operand either: there `matmul` is jnp.dot. All else is the code that
the GPU runs, and fp32 is taken as well. Layouts are left to the compiler (Warpgroup semantics), as
the interpreter of 0.10.2 knows no layout_cast.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.lists import Band, Listed, Range, Sizes, Tokens, Visits

ROWS = 64  # of a warpgroup: the M of wgmma
SHARED = 220 * 1024  # bytes for buffers, of 227 KiB: each starts at a multiple of 1 KiB
STAGES = 4  # more than hide the latency of TMA cost shared memory only
REGISTERS = 512  # for one thread of each warpgroup, in all
PRODUCER = 40
LOG2E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Job:
  """What the body of a kernel knows when it is compiled."""

  sizes: Sizes
  band: Band
  scale: float
  soft_cap: float | None
  group: int
  stages: int
  interpret: bool


class Ring(NamedTuple):
  """Barriers of the stages: filled by TMA, and given free by all consumers."""

  full: Any
  free: Any


def launch(
  body: Callable,
  name: str,
  out_type: Any,
  scratch: tuple,
  grid: dict[str, int],
  consumers: int,
  estimate: pl.CostEstimate,
  interpret: Any,
) -> Callable:
  """The kernel with so many consuming warpgroups and one that produces."""
  takes = inspect.signature(plgpu.kernel).parameters  # jax 0.10.2 takes no estimate
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=scratch,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    num_threads=consumers + 1,
    thread_name='warpgroup',
    kernel_name=name,
    # Layouts of registers and shared memory are inferred; exp2 is the hardware's.
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=interpret or None,
    **({'cost_estimate': estimate} if 'cost_estimate' in takes else {}),
  )


def cost(pairs: int, width: int, arrays: tuple[jax.Array, ...]) -> pl.CostEstimate:
  """Were every block to visit as many others as it may."""
  bytes_ = sum(x.size * x.dtype.itemsize for x in arrays)
  return pl.CostEstimate(flops=2 * pairs * width, transcendentals=pairs, bytes_accessed=2 * bytes_)


def check(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  sizes: Sizes,
  owned: int,
  interpret: Any,
) -> None:
  """Refuses what the kernels cannot do; `owned`: the size whose rows warpgroups divide."""
  known = (jnp.bfloat16, jnp.float16) + ((jnp.float32,) if interpret else ())
  H, V = q_BLNH.shape[-1], v_BMKV.shape[-1]
  if len({q_BLNH.dtype, k_BMKH.dtype, v_BMKV.dtype}) > 1 or q_BLNH.dtype not in known:
    given = ', '.join(str(x.dtype) for x in (q_BLNH, k_BMKH, v_BMKV))
    raise NotImplementedError(f'gpu: q, k, v are {given}; all bfloat16 or all float16 expected')
  if H % 64 or V % 64 or V > H:
    raise NotImplementedError(f'gpu: widths {H} and {V}; multiples of 64, V at most H, expected')
  if sizes.query % 64 or sizes.key % 64 or max(sizes.query, sizes.key) > 256 or owned > 3 * ROWS:
    raise NotImplementedError(
      f'gpu: {sizes}; multiples of 64 up to 256 expected, up to {3 * ROWS} for what a block owns'
    )


def staged(fixed: int, stage: int, most: int, sizes: Sizes) -> int:
  """How many stages fit into shared memory beside what is fixed, all in bytes."""
  fit = (SHARED - fixed) // stage
  if fit < min(2, most):
    raise NotImplementedError(
      f'gpu: {sizes} takes {fixed} + 2·{stage} bytes of shared memory of {SHARED}; take less'
    )
  return max(1, min(STAGES, fit, most))


def ring(stages: int, copies: int, consumers: int) -> Ring:
  """Barriers for stages that so many copies fill and so many warpgroups empty."""
  barrier = functools.partial(plgpu.Barrier, num_barriers=stages)
  return Ring(barrier(num_arrivals=copies), barrier(num_arrivals=consumers))


def registers(consumers: int) -> None:
  """Gives a consumer what the producer leaves."""
  share = min(256, (REGISTERS - PRODUCER) // consumers)
  plgpu.set_max_registers(share // 8 * 8, action='increase')


def addresses(visits: Visits) -> tuple[jax.Array, jax.Array]:
  """Where the visited blocks stand, [B, I] or [B, I, T], and how many they are, count_BI."""
  match visits:
    case Range(first_BI, count_BI):
      return first_BI, count_BI
    case Listed(ids_BIT):
      return ids_BIT, (ids_BIT >= 0).sum(-1, dtype=jnp.int32)


def visiting(where: Any, b: jax.Array, i: jax.Array) -> Callable[[jax.Array], jax.Array]:
  """The t-th block that block i visits, from `addresses` in GMEM."""
  if len(where.shape) == 3:
    return lambda t: where[b, i, t]
  first = where[b, i]
  return lambda t: first + t


def beside(tokens: Tokens, size: int, mixed: int) -> jax.Array:
  """[B, I, 3, size] of the blocks' indices, segments and marks (segment, lowest, highest index).

  The marked segment is `mixed` unless all tokens share one. −2 for queries and −1 for keys: equal
  marks are of one segment, and equal segments are not padding, which keys have as −1.
  """
  index_BIS, segments_BIS = (rearrange(x, 'B (I S) -> B I S', S=size) for x in tokens)
  one_BI = segments_BIS[..., 0]
  alone_BI = (segments_BIS == one_BI[..., None]).all(-1) & (one_BI > 0)
  marks = (jnp.where(alone_BI, one_BI, mixed), index_BIS.min(-1), index_BIS.max(-1))
  marks_BIS = jnp.zeros_like(index_BIS).at[..., :3].set(jnp.stack(marks, -1))
  padding = -1 if mixed == -1 else 0
  segments_BIS = jnp.where(segments_BIS > 0, segments_BIS, padding)
  return jnp.stack((index_BIS, segments_BIS, marks_BIS), 2).astype(jnp.int32)


def produce(steps: jax.Array, stages: int, rings: list[tuple[Ring, Callable]]) -> None:
  """Fetches step after step into the next stage of each ring once that is free."""

  @pl.loop(0, steps)
  def _fill(t):
    slot = lax.rem(t, jnp.int32(stages))
    for barriers, fetch in rings:
      pl.when(t >= stages)(functools.partial(plgpu.barrier_wait, barriers.free.at[slot]))
      fetch(t, slot, barriers.full.at[slot])

  # Every phase is waited for: the interpreter asks for it, and it costs an idle warpgroup only.
  @pl.loop(jnp.maximum(steps - stages, 0), steps)
  def _drain(t):
    for barriers, _ in rings:
      plgpu.barrier_wait(barriers.free.at[lax.rem(t, jnp.int32(stages))])


def release(barriers: Ring, slot: jax.Array) -> None:
  """Gives a stage free of which loads (not only wgmma) have read: TMA is to write after them."""
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.free.at[slot])


def matmul(
  *pairs: tuple, onto: jax.Array | None = None, transposed: bool = False, interpret: bool = False
) -> jax.Array:
  """onto + Σ a b (transposed: a bᵀ) in fp32; a in registers or shared memory, b in the latter."""
  if interpret:
    turn = (lambda b: b[...].T) if transposed else (lambda b: b[...])
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32, precision='highest')
    made = sum(dot(a[...], turn(b)) for a, b in pairs)
    plgpu.commit_smem()  # wgmma reads as TMA writes, in the async proxy; these loads do not
    return made if onto is None else onto + made
  pairs = [(a, b.transpose((1, 0)) if transposed else b) for a, b in pairs]

  def add(sums):
    for a, b in pairs:
      plgpu.wgmma(sums, a, b)

  def fresh(sums):
    add(sums)
    return sums[...]

  if onto is not None:
    return pl.run_state(add)(plgpu.ACC.init(onto))
  shape = (pairs[0][0].shape[0], pairs[0][1].shape[1])
  return pl.run_scoped(fresh, plgpu.ACC(shape, jnp.float32))


def over(x_S: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
  """A vector along `axis` of a matrix, repeated over the other."""
  return lax.broadcast_in_dim(x_S, shape, (axis,))


def capped(s: jax.Array, job: Job) -> tuple[jax.Array, jax.Array | None]:
  """Products as scores in powers of two, and the soft cap's derivative."""
  if job.soft_cap is None:
    return s * (job.scale * LOG2E), None
  # Not jnp.tanh: the hardware's is good for 11 bits only.
  tanh = 1 - 2 / (1 + jnp.exp2(s * (2 * LOG2E * job.scale / job.soft_cap)))
  return tanh * (job.soft_cap * LOG2E), 1 - tanh * tanh


def masked(s: jax.Array, queries: Any, keys: Any, axis: int, band: Band) -> jax.Array:
  """s with −inf where the query (along `axis`) does not see the key; tokens are from `beside`."""
  (one, low, high), (same, lowest, highest) = ([x[2, m] for m in range(3)] for x in (queries, keys))
  full = (one == same) & (low - highest >= band.near)
  if band.far is not None:
    full &= high - lowest < band.far

  def mask(s):
    q = lambda x: over(x, s.shape, axis)
    k = lambda x: over(x, s.shape, 1 - axis)
    index_q, index_k = q(queries[0]), keys[0]
    seen = (q(queries[1]) == k(keys[1])) & (index_q >= k(index_k + band.near))
    if band.far is not None:
      seen &= index_q < k(index_k + band.far)
    return jnp.where(seen, s, -jnp.inf)

  return lax.cond(full, lambda s: s, mask, s)
