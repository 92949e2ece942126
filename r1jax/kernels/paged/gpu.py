"""Decode attention over pages in Mosaic GPU, for sm_90 (H100, H200).

    s = cap(scale · q·k),   p = exp(s − max s),   o = p v / Σ p,   lse = max s + log Σ p

A CUDA block serves up to 64 query heads of one kv head, the rows that wgmma has, and a part of its
row's list: few rows fill the device by more parts, merged by their lse. Its warpgroups are a chain:

    producer   reads the list and has TMA copy whole pages, or parts of them, into a ring of stages
    scores     s of a stage, softmax (powers of two, fp32 registers) and p into shared memory
    values     o ← o · kept + p v, up to 256 columns each: one warpgroup, or two (MLA's 512)

so that the products of one stage run beside the softmax of the next. Where values are part of the
keys a page is read once for both. int8 pages have stages of their own, from which the producer
turns them into the queries' dtype; scales are gathered outside and multiply scores and p.

Cost: 2·64·(H + V) flops a place and 64 query heads, were they fewer too; every page is copied once
for 64 query heads. The last stage of a list may hold places that nobody sees: where they are
masked, their values are zeroed as well, as 0 · NaN is not 0.

On a GPU none of this has run yet, so nothing takes it unasked: see PROVEN in kernels/attention.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu_tiles import (
  LOG2E,
  REGISTERS,
  ROWS,
  Ring,
  capped,
  cost,
  launch,
  matmul,
  over,
  produce,
  ring,
)
from r1jax.kernels.paged.memory import Int8, Memory, Stack, in_pool, numbers
from r1jax.kernels.paged.visible import Visible, padded, seen

SHARED = 226 * 1024  # bytes for buffers, of 227 KiB: the rest is for barriers
APART = 1024  # each buffer starts at a multiple of it
PLACES = (64, 32, 16)  # of a stage; the first of which enough stages fit
STAGES, LEAST = 6, 3  # at most and at least; of int8 pages before they are converted
CONVERTED = 2  # stages behind those
COLUMNS = 256  # of o for a warpgroup, in registers
SCORER, PRODUCER = 112, 64  # registers of a thread; warpgroups of values share the rest
BLOCKS = 132  # that run at once: an H200's multiprocessors
BEGIN = 4  # what a part costs beyond its stages, in stages
LOW = -1e30  # below every score, but finite: LOW − LOW is 0


@dataclasses.dataclass(frozen=True)
class Job:
  """What the kernel knows when it is compiled."""

  places: int  # of a stage
  copy: int  # places of a copy
  stages: int
  raw: int  # stages of int8 pages, 0 of others
  splits: int  # parts of a list
  rows: int  # of 64 query heads, those that are written
  parts: tuple[int, ...]  # widths of q's buffers: a values warpgroup's columns each, then the rest
  keys: tuple[int, ...]  # widths of the key stacks
  width: int
  own: bool  # values have a stack of their own
  blocks: int  # of 64 query heads, a kv head
  scale: float
  soft_cap: float | None
  interpret: bool

  @property
  def columns(self) -> list[tuple[int, int]]:
    """(first, how many) columns of o of each values warpgroup."""
    return [(first, self.parts[0]) for first in range(0, self.width, self.parts[0])]

  @property
  def read(self) -> tuple[int, ...]:
    """Widths of all stacks, as they are read."""
    return (*self.keys, self.width) if self.own else self.keys


class Buffers(NamedTuple):
  """Shared memory and barriers of a block."""

  q: tuple
  stages: tuple  # a stack each, [stages, places, width]
  raw: tuple
  bounds: Any
  scales: Any
  p: Any
  kept: Any
  lse: Any
  ready: Any  # q is there
  staging: Ring
  copied: Any  # raw is there
  weights: Ring  # of p and kept


class Lists(NamedTuple):
  """What a block reads of its row's list, cut into stages."""

  copies_BTC: jax.Array  # which part of the pool, in parts of a copy's size
  bounds_BTX: jax.Array  # 1 if all is seen, or 0; then from + 2^16·to of each copy
  span_B2: jax.Array  # the first stage of which something is seen, and how many there are


def refusal(q_BNH: jax.Array, memory: Memory, interpret: Any = False) -> str | None:
  """Why the kernel does not take this memory, if it does not."""
  kinds, query = {numbers(s).dtype.name for s in memory.stacks}, q_BNH.dtype.name
  known = ('bfloat16', 'float16') + (('float32',) if interpret else ())
  if query not in known or kinds not in ({query}, {'int8'}):
    return f'pages of {", ".join(sorted(kinds))} for queries in {query}; int8 or the queries\' are read, {" or ".join(known)}'
  layers, pages, size = numbers(memory.keys[0]).shape[:3]
  if size % 8 or layers * pages * size >= 2**31:
    return f'{layers} · {pages} pages of {size} places; multiples of 8 are read, of a pool below 2^31'
  V, widths = memory.width, memory.widths
  if any(w % 64 for w in (*widths, V)):
    return f'keys of {" + ".join(map(str, widths))} numbers, values of {V}; multiples of 64 are read'
  if V > min(2 * COLUMNS, sum(widths)) or (V > COLUMNS and V % 128):
    return f'values of {V} numbers, keys of {sum(widths)}; up to {2 * COLUMNS} and the keys\' fit'
  if memory.values is not None and len(widths) > 1:
    return f'{len(widths)} key stacks beside one of values; one is read'
  if fitting(q_BNH, memory) is None:
    return f'keys of {sum(widths)} numbers; too few stages fit into {SHARED} bytes of shared memory'
  return None


def fitting(q_BNH: jax.Array, memory: Memory, most: int = PLACES[0]) -> tuple[int, int, int] | None:
  """(places of a stage, stages, raw stages) of the largest stages that fit, up to `most` places."""
  size, coded, H = q_BNH.dtype.itemsize, isinstance(memory.keys[0], Int8), sum(memory.widths)
  read = H + (0 if memory.values is None else memory.width)
  for places in PLACES:
    free = SHARED - ROWS * (H + places) * size - (4 if coded else 3) * APART
    stages = CONVERTED if coded else min(STAGES, free // (places * read * size))
    raw = min(STAGES, (free - stages * places * read * size) // (places * read)) if coded else 0
    if (raw >= LEAST if coded else stages >= LEAST) and (places <= most or places == PLACES[-1]):
      return places, stages, raw
  return None


def splits_of(programs: int, steps: int) -> int:
  """Into how many parts lists of so many stages are cut, for the least time by the rule.

  As many rounds as BLOCKS at once need, each as long as a part's stages and what it costs beside.
  """
  took = lambda n: -(-programs * n // BLOCKS) * (-(-steps // n) + BEGIN)
  return min(range(1, min(steps, BLOCKS) + 1), key=took)


def paged_attention(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  visible: Visible,
  scale: float,
  soft_cap: float | None = None,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BNV, lse_BN); a row that sees nothing gives 0 and −inf. `interpret`: InterpretGPUParams."""
  (B, N, H), K = q_BNH.shape, memory.heads
  job = _job(q_BNH, memory, visible.pages_BT.shape[1], scale, soft_cap, bool(interpret))
  visible = padded(visible, job.places // job.copy)
  lists = lists_of(visible, memory, layer, job)
  q_BKGH = rearrange(q_BNH, 'B (K G) H -> B K G H', K=K)
  G = q_BKGH.shape[2]
  q_BKGH = jnp.pad(q_BKGH, ((0, 0), (0, 0), (0, job.blocks * ROWS - G), (0, 0)))
  q_BXSH = rearrange(q_BKGH, 'B K (I S) H -> B (K I) S H', S=ROWS)
  # Layers and pages as one axis: places, of which a copy takes some.
  pools = [numbers(s).reshape(-1, *numbers(s).shape[3:]) for s in memory.stacks]
  scales = [_scales(memory, layer, visible, job)] if job.raw else []
  o_BZXSV, lse_BZXS = _kernel(q_BXSH, lists, pools, scales, job, interpret)
  o_BZXSV, lse_BZXS = merged(o_BZXSV, lse_BZXS[..., : job.rows], q_BNH.dtype)
  heads = lambda x: rearrange(x, 'B (K I) S ... -> B K (I S) ...', K=K)[:, :, :G]
  return tuple(rearrange(heads(x), 'B K G ... -> B (K G) ...') for x in (o_BZXSV, lse_BZXS))


def _job(
  q_BNH: jax.Array,
  memory: Memory,
  entries: int,
  scale: float,
  soft_cap: float | None,
  interpret: bool,
) -> Job:
  """How the kernel goes about lists of so many entries."""
  (B, N, H), K, V, size = q_BNH.shape, memory.heads, memory.width, memory.size
  places, stages, raw = fitting(q_BNH, memory, entries * size)
  G, steps = N // K, -(-entries * size // places)
  blocks = -(-G // ROWS)
  share = V if V <= COLUMNS else V // 2
  cuts = sorted({*range(0, V, share), V, *itertools.accumulate(memory.widths)})
  return Job(
    places=places,
    copy=math.gcd(size, places),
    stages=stages,
    raw=raw,
    splits=splits_of(B * K * blocks, steps),
    rows=min(ROWS, -(-G // 8) * 8),
    parts=tuple(b - a for a, b in itertools.pairwise(cuts)),
    keys=memory.widths,
    width=V,
    own=memory.values is not None,
    blocks=blocks,
    scale=scale,
    soft_cap=soft_cap,
    interpret=interpret,
  )


def lists_of(visible: Visible, memory: Memory, layer: jax.Array, job: Job) -> Lists:
  """The listed pages as copies, in stages; entries are a multiple of a stage's copies."""
  B, pages = len(visible.pages_BT), numbers(memory.keys[0]).shape[1]
  each = memory.size // job.copy
  page_BT = layer * pages + jnp.clip(visible.pages_BT, 0, pages - 1)
  copies_BTE = page_BT[..., None] * each + jnp.arange(each)
  inside = lambda x_BT: jnp.clip(x_BT[..., None] - jnp.arange(each) * job.copy, 0, job.copy)
  to_BT = jnp.where(visible.pages_BT < 0, 0, visible.to_BT)
  staged = lambda x_BTE: x_BTE.reshape(B, -1, job.places // job.copy).astype(jnp.int32)
  copies_BTC, from_BTC, to_BTC = map(staged, (copies_BTE, inside(visible.from_BT), inside(to_BT)))
  some_BT = (from_BTC < to_BTC).any(-1)
  all_BT = ((from_BTC == 0) & (to_BTC == job.copy)).all(-1)
  bounds_BTX = jnp.concatenate([all_BT[..., None], from_BTC + to_BTC * 2**16], -1)
  # TMA copies multiples of 16 bytes.
  bounds_BTX = jnp.pad(bounds_BTX, ((0, 0), (0, 0), (0, -bounds_BTX.shape[-1] % 4)))
  t = jnp.arange(some_BT.shape[1])
  end_B = jnp.where(some_BT, t + 1, 0).max(1)
  first_B = jnp.minimum(jnp.where(some_BT, t, t.size).min(1), end_B)
  return Lists(copies_BTC, bounds_BTX, jnp.stack([first_B, end_B - first_B], -1).astype(jnp.int32))


def _scales(memory: Memory, layer: jax.Array, visible: Visible, job: Job) -> jax.Array:
  """[B, K, stages, stacks, places] of what is listed, 0 where it is not seen."""
  pages_BT, (B, T) = in_pool(visible.pages_BT, memory), visible.pages_BT.shape
  seen_BM1 = seen(visible, memory.size)[..., None]

  def read(stack: Stack) -> jax.Array:
    scale = stack.scale.at[layer, pages_BT].get(mode='fill', fill_value=0)
    scale = jnp.where(seen_BM1, scale.reshape(B, T * memory.size, memory.heads), 0)
    return rearrange(scale, 'B (T Z) K -> B K T Z', Z=job.places)

  return jnp.stack([read(s) for s in memory.stacks], 3)


def merged(
  o_BYXSV: jax.Array, lse_BYXS: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """One softmax over all parts Y."""
  if o_BYXSV.shape[1] == 1:
    return o_BYXSV[:, 0], lse_BYXS[:, 0]
  lse_BXS = jax.nn.logsumexp(lse_BYXS, 1)
  w_BYXS = jnp.exp(lse_BYXS - jnp.where(lse_BXS == -jnp.inf, 0, lse_BXS)[:, None])
  return (o_BYXSV * w_BYXS[..., None]).sum(1).astype(dtype), lse_BXS


def _kernel(
  q_BXSH: jax.Array,
  lists: Lists,
  pools: list[jax.Array],
  scales: list[jax.Array],
  job: Job,
  interpret: Any,
) -> tuple[jax.Array, jax.Array]:
  """(o, lse) of every part of a list, of blocks of 64 query heads."""
  (B, X, _, H), steps = q_BXSH.shape, lists.copies_BTC.shape[1]
  shape = B, job.splits, X
  run = launch(
    functools.partial(_attend, job=job),
    'paged_attention',
    (
      jax.ShapeDtypeStruct((*shape, job.rows, job.width), q_BXSH.dtype),
      jax.ShapeDtypeStruct((*shape, ROWS), jnp.float32),
    ),
    (_buffers(q_BXSH.dtype, scales[0].dtype if scales else None, lists.bounds_BTX.shape[-1], job),),
    dict(zip(('rows', 'splits', 'heads'), shape)),
    len(job.columns) + 1,
    _cost(q_BXSH, pools, steps, job),
    interpret,
  )
  return run(q_BXSH, *lists, *scales, *pools)


def _buffers(dtype: jnp.dtype, scale: jnp.dtype | None, bounds: int, job: Job) -> Buffers:
  """The types of a block's shared memory."""
  copies = len(job.read) * (job.places // job.copy)
  values = len(job.columns)
  scales = plgpu.SMEM((job.stages, len(job.read), job.places), scale) if job.raw else ()
  return Buffers(
    q=tuple(plgpu.SMEM((ROWS, width), dtype) for width in job.parts),
    stages=tuple(plgpu.SMEM((job.stages, job.places, width), dtype) for width in job.read),
    raw=tuple(plgpu.SMEM((job.raw, job.places, w), jnp.int8) for w in job.read if job.raw),
    bounds=plgpu.SMEM((job.stages, bounds), jnp.int32),
    scales=scales,
    p=plgpu.SMEM((ROWS, job.places), dtype),
    kept=plgpu.SMEM((ROWS,), jnp.float32),
    lse=plgpu.SMEM((ROWS,), jnp.float32),
    ready=plgpu.Barrier(num_arrivals=len(job.parts)),
    staging=ring(job.stages, 3 if job.raw else 1 + copies, values),
    copied=plgpu.Barrier(num_arrivals=copies, num_barriers=max(1, job.raw)),
    weights=ring(1, 1, values),
  )


def _cost(
  q_BXSH: jax.Array, pools: list[jax.Array], steps: int, job: Job
) -> pl.CostEstimate:
  """Of full lists."""
  B, X, S, H = q_BXSH.shape
  pairs = B * X * S * steps * job.places
  read = sum(w * x.dtype.itemsize for w, x in zip(job.read, pools))
  return pl.CostEstimate(
    flops=2 * pairs * (H + job.width),
    transcendentals=pairs,
    bytes_accessed=B * X * steps * job.places * read,
  )


def _attend(q, copies, bounds, span, *refs, job):
  """Up to 64 query heads over a part of their row's list."""
  scales, pools = (refs[0], refs[1:-3]) if job.raw else (None, refs[:-3])
  o, lse, buffers = refs[-3:]
  b, part, x, wg = (lax.axis_index(name) for name in ('rows', 'splits', 'heads', 'warpgroup'))
  edge = lambda i: lax.div(i * span[b, 1], jnp.int32(job.splits))
  begin, steps = span[b, 0] + edge(part), edge(part + 1) - edge(part)
  count = len(job.columns)

  for h, (first, width) in enumerate(job.columns):

    @pl.when(wg == h)
    def _values(h=h, columns=pl.ds(first, width)):
      share = min(240, (REGISTERS - SCORER - PRODUCER) // count)
      plgpu.set_max_registers(share // 8 * 8, action='increase')
      buffers.q[h][...] = weighted(columns, steps, buffers, job).astype(o.dtype)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(buffers.q[h].at[pl.ds(0, job.rows)], o.at[b, part, x, :, columns])
      plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == count)
  def _scores():
    plgpu.set_max_registers(SCORER, action='decrease')
    first = 0
    for to in buffers.q:
      plgpu.copy_gmem_to_smem(q.at[b, x, :, pl.ds(first, to.shape[1])], to, buffers.ready)
      first += to.shape[1]
    plgpu.barrier_wait(buffers.ready)
    buffers.lse[...] = softmax(steps, buffers, job)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffers.lse, lse.at[b, part, x])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == count + 1)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    kv = lax.div(x, jnp.int32(job.blocks))

    def beside(t, slot, full):
      plgpu.copy_gmem_to_smem(bounds.at[b, begin + t], buffers.bounds.at[slot], full)
      if job.raw:
        plgpu.copy_gmem_to_smem(scales.at[b, kv, begin + t], buffers.scales.at[slot], full)

    def pages(t, slot, full, into):
      for i in range(job.places // job.copy):
        places = pl.ds(copies[b, begin + t, i] * job.copy, job.copy)
        for pool, to, width in zip(pools, into, job.read):
          head = (kv,) if len(pool.shape) == 3 else ()
          here = to.at[slot, pl.ds(i * job.copy, job.copy)]
          plgpu.copy_gmem_to_smem(pool.at[(places, *head, pl.ds(0, width))], here, full)

    if job.raw:
      convert(steps, beside, functools.partial(pages, into=buffers.raw), buffers, job)
      return

    def both(t, slot, full):
      beside(t, slot, full)
      pages(t, slot, full, buffers.stages)

    produce(steps, job.stages, [(buffers.staging, both)])


def convert(steps, beside, pages, buffers, job):
  """Fetches int8 pages into raw stages, and turns them into stages of q's dtype."""
  ahead = jnp.int32(job.raw)

  @pl.loop(0, jnp.minimum(steps, ahead))
  def _first(t):
    pages(t, t, buffers.copied.at[t])

  def fetch(t, slot, full):
    beside(t, slot, full)
    raw = lax.rem(t, ahead)
    plgpu.barrier_wait(buffers.copied.at[raw])
    for source, to in zip(buffers.raw, buffers.stages):
      to.at[slot][...] = source.at[raw][...].astype(to.dtype)
    plgpu.commit_smem()
    plgpu.barrier_arrive(full)
    pl.when(t + ahead < steps)(lambda: pages(t + ahead, raw, buffers.copied.at[raw]))

  produce(steps, job.stages, [(buffers.staging, fetch)])


def softmax(steps, buffers, job):
  """Online softmax of 64 query heads: hands on p, and what of o is to be kept; lse_S."""
  weights = buffers.weights

  def hand_on(kept_S):
    buffers.kept[...] = kept_S
    plgpu.commit_smem()
    plgpu.barrier_arrive(weights.full)

  def visit(t, state):
    total_S, top_S = state
    slot = lax.rem(t, jnp.int32(job.stages))
    plgpu.barrier_wait(buffers.staging.full.at[slot])
    s_SZ = masked(scores(slot, buffers, job), slot, buffers, job)
    higher_S = jnp.maximum(top_S, s_SZ.max(1))
    kept_S = jnp.exp2(top_S - higher_S)
    p_SZ = jnp.exp2(s_SZ - over(higher_S, s_SZ.shape, 0))
    total_S = total_S * kept_S + p_SZ.sum(1)
    if job.raw:
      p_SZ *= scale_of(-1 if job.own else 0, slot, s_SZ.shape, buffers)
    pl.when(t > 0)(lambda: plgpu.barrier_wait(weights.free))
    buffers.p[...] = p_SZ.astype(buffers.p.dtype)
    hand_on(kept_S)
    return total_S, higher_S

  start = jnp.zeros(ROWS, jnp.float32), jnp.full(ROWS, LOW, jnp.float32)
  total_S, top_S = lax.fori_loop(0, steps, visit, start)
  seen_S = total_S > 0
  some_S = jnp.where(seen_S, total_S, 1.0)
  pl.when(steps > 0)(lambda: plgpu.barrier_wait(weights.free))
  hand_on(1 / some_S)
  return jnp.where(seen_S, top_S / LOG2E + jnp.log(some_S), -jnp.inf)


def scores(slot, buffers, job):
  """s_SZ of a stage in powers of two, capped; a product for each stack that has scales."""
  product = functools.partial(matmul, transposed=True, interpret=job.interpret)
  ends, first = [0, *itertools.accumulate(job.keys)], 0
  pairs = [[] for _ in job.keys]
  for q in buffers.q:
    n = max(i for i, end in enumerate(ends[:-1]) if end <= first)
    columns = pl.ds(first - ends[n], q.shape[1])
    pairs[n] += [(q, buffers.stages[n].at[slot, :, columns])]
    first += q.shape[1]
  if not job.raw:
    return capped(product(*sum(pairs, [])), job)[0]
  scaled = [product(*some) for some in pairs]
  scaled = [s * scale_of(n, slot, s.shape, buffers) for n, s in enumerate(scaled)]
  return capped(sum(scaled[1:], scaled[0]), job)[0]


def scale_of(n, slot, shape, buffers):
  """The scales of the n-th stack's places, beside scores."""
  n = n % buffers.scales.shape[1]
  return over(buffers.scales[slot, n].astype(jnp.float32), shape, 1)


def masked(s_SZ, slot, buffers, job):
  """−inf where a place is not seen; there, values are zeroed, whatever they are, NaN too."""

  def mask(s_SZ):
    values = buffers.stages[-1 if job.own else 0]
    for first in range(0, 0 if job.raw else job.width, 64):
      part = values.at[slot, :, pl.ds(first, 64)]
      part[...] = jnp.where(seen_of(slot, part.shape, 0, buffers, job), part[...], 0)
    return jnp.where(seen_of(slot, s_SZ.shape, 1, buffers, job), s_SZ, -jnp.inf)

  return lax.cond(buffers.bounds[slot, 0] > 0, lambda s: s, mask, s_SZ)


def seen_of(slot, shape, axis, buffers, job):
  """Where the places along this axis are seen."""
  at, some = lax.broadcasted_iota(jnp.int32, shape, axis), None
  for i in range(job.places // job.copy):
    bound = buffers.bounds[slot, 1 + i]
    low, high = (i * job.copy + x for x in (bound & 0xFFFF, lax.shift_right_logical(bound, 16)))
    inside = (at >= low) & (at < high)
    some = inside if some is None else some | inside
  return some


def weighted(columns, steps, buffers, job):
  """Σ p v / Σ p of a values warpgroup's columns."""
  weights, values = buffers.weights, buffers.stages[-1 if job.own else 0]

  def visit(t, o_SV):
    slot = lax.rem(t, jnp.int32(job.stages))
    plgpu.barrier_wait(weights.full)
    p_SZ, kept_S = buffers.p[...], buffers.kept[...]
    plgpu.barrier_arrive(weights.free)
    o_SV = o_SV * over(kept_S, o_SV.shape, 0)
    o_SV = matmul((p_SZ, values.at[slot, :, columns]), onto=o_SV, interpret=job.interpret)
    plgpu.barrier_arrive(buffers.staging.free.at[slot])
    return o_SV

  o_SV = lax.fori_loop(0, steps, visit, jnp.zeros((ROWS, columns.size), jnp.float32))
  plgpu.barrier_wait(weights.full)
  return o_SV * over(buffers.kept[...], o_SV.shape, 0)
