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
masked, their values are zeroed as well, as 0 · NaN is not 0. Single places are left to XLA: TMA
would have to write one row at a time, and the tiles that wgmma reads have eight.

On a GPU none of this has run yet, so nothing takes it unasked: see kernels/platform.py.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl

from r1jax.kernels.attention.gpu_tiles import ROWS, launch
from r1jax.kernels.paged.gpu_chain import BOUNDS, SCALES, Job, attend, buffers_of
from r1jax.kernels.paged.memory import Int8, Memory, Stack, in_pool, numbers
from r1jax.kernels.paged.visible import Visible, padded, seen

SHARED = 226 * 1024  # bytes for buffers, of 227 KiB: the rest is for barriers
APART = 1024  # each buffer starts at a multiple of it
PLACES = (64, 32)  # of a stage; the first of which enough stages fit
STAGES, LEAST = 6, 3  # at most and at least; of int8 pages before they are converted
CONVERTED = 2  # stages after that
COLUMNS = 256  # of o for a warpgroup, in registers
BLOCKS = 132  # that run at once: an H200's multiprocessors
BEGIN = 4  # what a part costs beyond its stages, in stages


class Lists(NamedTuple):
  """What a block reads of its row's list, cut into stages."""

  copies_BTC: jax.Array  # which part of the pool, in parts of a copy's size
  bounds_BTX: jax.Array  # 1 if all is seen, or 0; then from + 2^16·to of each copy
  span_B2: jax.Array  # the first stage of which something is seen, and how many there are


def refusal(q_BNH: jax.Array, memory: Memory, interpret: Any = False) -> str | None:
  """Why the kernel does not take this memory, if it does not."""
  stored, query = [numbers(s) for s in memory.stacks], q_BNH.dtype.name
  kinds, (V, widths) = sorted({x.dtype.name for x in stored}), (memory.width, memory.widths)
  known = ['bfloat16', 'float16'] + ['float32'] * bool(interpret)
  if query not in known or kinds not in ([query], ['int8']):
    return (
      f'pages of {", ".join(kinds)} for queries in {query}; of int8 or the same are read, for '
      f'queries in {" or ".join(known)}'
    )
  if memory.size % 8:
    return f'pages of {memory.size} places; a multiple of 8 is read'
  if math.prod(stored[0].shape[:3]) >= 2**31:
    return f'{math.prod(stored[0].shape[:3])} places in all layers; fewer than 2^31 are read'
  if any(w % 64 for w in (*widths, V)) or any(x.shape[-1] % 16 for x in stored):
    return (
      f'keys of {" + ".join(map(str, widths))} numbers, values of {V}; multiples of 64 are read'
    )
  if sum(widths) < V or V > 2 * COLUMNS or (V > COLUMNS and V % 128):
    return (
      f'values of {V} numbers; {2 * COLUMNS} are served and {sum(widths)}, as many as keys have'
    )
  if memory.values is not None and len(widths) > 1:
    return f'{len(widths)} key stacks beside one of values; one is read'
  if fitting(q_BNH, memory) is None:
    return f'keys of {sum(widths)} numbers; too few stages fit into {SHARED} bytes of shared memory'
  return None


def fitting(q_BNH: jax.Array, memory: Memory, most: int = PLACES[0]) -> tuple[int, int, int] | None:
  """(places of a stage, stages, int8 stages) of the largest that fit, of not much above `most`."""
  size, coded, H = q_BNH.dtype.itemsize, isinstance(memory.keys[0], Int8), sum(memory.widths)
  read = H + (0 if memory.values is None else memory.width)
  for places in PLACES:
    stage = places * read
    free = SHARED - ROWS * (H + places) * size - (4 if coded else 3) * APART
    stages = CONVERTED if coded else min(STAGES, free // (stage * size))
    raw = min(STAGES, (free - stages * stage * size) // stage) if coded else 0
    if (raw if coded else stages) >= LEAST and (places <= most or places == PLACES[-1]):
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
  job = _job(q_BNH, memory, visible.pages_BT.shape[1], scale, soft_cap, bool(interpret))
  visible = padded(visible, job.places // job.copy)
  q_BKGH = rearrange(q_BNH, 'B (K G) H -> B K G H', K=memory.heads)
  G = q_BKGH.shape[2]
  q_BKGH = jnp.pad(q_BKGH, ((0, 0), (0, 0), (0, job.blocks * ROWS - G), (0, 0)))
  q_BXSH = rearrange(q_BKGH, 'B K (I S) H -> B (K I) S H', S=ROWS)
  scales = [_scales(memory, layer, visible, job)] if job.raw else []
  # Layers, pages and places as one axis, which copies cut.
  pools = [numbers(s).reshape(-1, *numbers(s).shape[3:]) for s in memory.stacks]
  parts = _call(q_BXSH, lists_of(visible, memory, layer, job), scales, pools, job, interpret)

  def by_head(x: jax.Array) -> jax.Array:
    x = rearrange(x, 'B (K I) S ... -> B K (I S) ...', K=memory.heads)[:, :, :G]
    return rearrange(x, 'B K G ... -> B (K G) ...')

  return tuple(map(by_head, merged(*parts, q_BNH.dtype)))


def _job(
  q_BNH: jax.Array,
  memory: Memory,
  entries: int,
  scale: float,
  soft_cap: float | None,
  interpret: bool,
) -> Job:
  """How the kernel goes about lists of so many entries."""
  (B, N, _), K, V, size = q_BNH.shape, memory.heads, memory.width, memory.size
  places, stages, raw = fitting(q_BNH, memory, entries * size)
  G, steps = N // K, -(-entries * size // places)
  blocks = -(-G // ROWS)
  ends = [0, *itertools.accumulate(memory.widths)]
  cuts = sorted({*range(0, V, V if V <= COLUMNS else V // 2), V, *ends})
  stack = [max(n for n, end in enumerate(ends[:-1]) if end <= a) for a in cuts[:-1]]
  parts = [(n, a - ends[n], b - a) for n, (a, b) in zip(stack, itertools.pairwise(cuts))]
  return Job(
    places=places,
    copy=math.gcd(size, places),
    stages=stages,
    raw=raw,
    splits=splits_of(B * K * blocks, steps),
    blocks=blocks,
    rows=min(ROWS, -(-G // 8) * 8),
    parts=tuple(parts),
    keys=memory.widths,
    width=V,
    own=memory.values is not None,
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
  bounds_BTX = jnp.pad(bounds_BTX, ((0, 0), (0, 0), (0, BOUNDS - bounds_BTX.shape[-1])))
  t = jnp.arange(some_BT.shape[1])
  end_B = jnp.where(some_BT, t + 1, 0).max(1)
  first_B = jnp.minimum(jnp.where(some_BT, t, t.size).min(1), end_B)
  return Lists(copies_BTC, bounds_BTX, jnp.stack([first_B, end_B - first_B], -1).astype(jnp.int32))


def _scales(memory: Memory, layer: jax.Array, visible: Visible, job: Job) -> jax.Array:
  """[B, K, stages, stacks, SCALES] of what is listed, 0 where it is not seen."""
  pages_BT, (B, T) = in_pool(visible.pages_BT, memory), visible.pages_BT.shape
  seen_BM1 = seen(visible, memory.size)[..., None]

  def read(stack: Stack) -> jax.Array:
    scale = stack.scale.at[layer, pages_BT].get(mode='fill', fill_value=0)
    scale = jnp.where(seen_BM1, scale.reshape(B, T * memory.size, memory.heads), 0)
    return rearrange(scale, 'B (T Z) K -> B K T Z', Z=job.places)

  scales_BKTNZ = jnp.stack([read(s) for s in memory.stacks], 3)
  return jnp.pad(scales_BKTNZ, ((0, 0),) * 4 + ((0, SCALES - job.places),))


def merged(
  o_BYXSV: jax.Array, lse_BYXS: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """One softmax over all parts Y."""
  if o_BYXSV.shape[1] == 1:
    return o_BYXSV[:, 0], lse_BYXS[:, 0]
  lse_BXS = jax.nn.logsumexp(lse_BYXS, 1)
  w_BYXS = jnp.exp(lse_BYXS - jnp.where(lse_BXS == -jnp.inf, 0, lse_BXS)[:, None])
  return (o_BYXSV * w_BYXS[..., None]).sum(1).astype(dtype), lse_BXS


def _call(
  q_BXSH: jax.Array,
  lists: Lists,
  scales: list[jax.Array],
  pools: list[jax.Array],
  job: Job,
  interpret: Any,
) -> tuple[jax.Array, jax.Array]:
  """(o, lse) of every part Y of a list, and of X blocks of 64 query heads."""
  B, X, _, _ = q_BXSH.shape
  shape = B, job.splits, X
  o_BYXSV, lse_BYXS = launch(
    functools.partial(attend, job=job),
    'paged_attention',
    (
      jax.ShapeDtypeStruct((*shape, job.rows, job.width), q_BXSH.dtype),
      jax.ShapeDtypeStruct((*shape, ROWS), jnp.float32),
    ),
    (buffers_of(q_BXSH.dtype, scales[0].dtype if scales else None, job),),
    dict(zip(('rows', 'splits', 'heads'), shape)),
    len(job.columns) + 1,
    _cost(q_BXSH, pools, lists.copies_BTC.shape[1], job),
    interpret,
  )(q_BXSH, *lists, *scales, *pools)
  return o_BYXSV, lse_BYXS[..., : job.rows]


def _cost(q_BXSH: jax.Array, pools: list[jax.Array], steps: int, job: Job) -> pl.CostEstimate:
  """Of full lists."""
  B, X, S, H = q_BXSH.shape
  pairs = B * X * S * steps * job.places
  read = sum(w * x.dtype.itemsize for w, x in zip(job.read, pools))
  return pl.CostEstimate(
    flops=2 * pairs * (H + job.width),
    transcendentals=pairs,
    bytes_accessed=B * X * steps * job.places * read,
  )
