"""Decode attention over pages on TPUs: Pallas, a step a few pages of a row.

    items   (row, m pages): what the rows list, cut into steps, one after the other without gaps
    step    s = q kᵀ over m pages of all heads at once;   m, l, o ← online softmax

The pool stays where it is. It is an operand m times; the lists are scalars in SMEM, from which
each operand's index map tells the page to copy next, and Pallas copies it while the step before
computes. The grid is as long as the lists are, known only when it runs. Rows are cut in two halves
of about equal length for the two cores of a v4 or v5p chip.

A page [S, K, W] is met as S·K rows of W by the queries of all heads; pairs of a query and a key of
another head are masked. A page's numbers pass through the matrix unit once either way, and no page
is transposed; the price is K times the exponentials. Steps whose pages are seen whole skip all
masks of places, which also keep what nobody wrote (NaN) out of the sums.

int8: pages are copied as integers. Scales (1/64 of that at W = 128) are gathered outside into rows
beside the scores, s·(q x̂ᵀ) and (p·s) x̂.

Scalars: B·T page ids and bounds and B·T/m items of 4 bytes; a batch with more than SMEM holds is
cut into several calls.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.paged.memory import Int8, Memory, Stack, in_pool, numbers
from r1jax.kernels.paged.visible import Visible, filled, padded

LANES = 128
ROWS = 2048  # of pages side by side in a step
SCORES = 2**18  # of a step
PAGES = 8  # of a step
ENTRIES = 2**16  # of all lists of a call: half a MiB of SMEM


class Items(NamedTuple):
  """The scalars of a call. An item is a step of a row; steps count from the row's first page."""

  layer_1: jax.Array
  pages_X: jax.Array  # [B·steps·m]
  bounds_X: jax.Array  # from + 2^16·to, places of a page times its heads
  row_I: jax.Array
  begin_B: jax.Array  # [B + 1]: each row's first item
  first_B: jax.Array  # and the step that it is
  core_C: jax.Array  # [cores + 1]: each core's first item

  def at(self, core: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(row, step) of a core's i-th item; past its end, those of its last."""
    item = jnp.minimum(self.core_C[core] + i, self.core_C[core + 1] - 1)
    row = self.row_I[item]
    return row, self.first_B[row] + item - self.begin_B[row]


class Shape(NamedTuple):
  """Of a step: pages, steps that a row can have, rows of a page, their place in the operands."""

  pages: int
  steps: int
  rows: int
  heads: int
  widths: tuple[int, ...]
  scales: tuple[int | None, ...]
  values: bool
  width: int
  scale: float
  soft_cap: float | None


def refusal(q_BNH: jax.Array, memory: Memory) -> str | None:
  """Why the kernel does not take this memory, if it does not.

  Pages are met as [n, P, S·K, W]. Where XLA's tiles of [K, W] are not those of [S·K, W], or where
  it would lay the pages themselves innermost, that view copies the pool.
  """
  K, kinds = memory.heads, {numbers(s).dtype.name for s in memory.stacks}
  if not kinds <= {'bfloat16', 'float32', 'int8'} or q_BNH.dtype.name == 'float64':
    return f'pages of {", ".join(sorted(kinds))}; bfloat16, float32 and int8 are read'
  if memory.size * K % 32 or memory.size * K >= 2**15:
    return f'pages of {memory.size} places and {K} heads; fewer than 2^15 rows, a multiple of 32'
  for width in (numbers(s).shape[-1] for s in memory.stacks):
    if width % LANES:
      return f'vectors of {width} numbers; pad them to a multiple of {LANES} where they are stored'
    few = width == LANES and K in ((4,) if 'int8' in kinds else (2, 4))
    if K > 1 and K % 8 and not few:
      return f'{K} heads of {width} numbers; a multiple of 8 heads is read, or few of {LANES}'
  return None


def paged_attention(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  visible: Visible,
  scale: float,
  soft_cap: float | None = None,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BNV, lse_BN); a row that sees nothing gives 0 and −inf."""
  (B, N, _), T = q_BNH.shape, visible.pages_BT.shape[1]
  rows = memory.size * memory.heads
  m = max(1, min(T, PAGES, min(ROWS, SCORES // N) // rows))
  visible = padded(visible, m)
  # A copy from beyond the pool would stop the chip.
  last = numbers(memory.keys[0]).shape[1] - 1
  visible = visible._replace(pages_BT=jnp.minimum(visible.pages_BT, last))
  shape = Shape(
    m,
    visible.pages_BT.shape[1] // m,
    rows,
    memory.heads,
    memory.widths,
    tuple(_numbered(isinstance(s, Int8) for s in memory.stacks)),
    memory.values is not None,
    memory.width,
    scale,
    soft_cap,
  )
  run = functools.partial(_call, shape=shape, interpret=interpret)
  at_once = max(1, ENTRIES // visible.pages_BT.shape[1])
  parts = []
  for b in range(0, B, at_once):
    take = lambda x, b=b: x[b : b + at_once]
    parts.append(run(take(q_BNH), memory, layer, Visible(*map(take, visible))))
  return parts[0] if len(parts) == 1 else tuple(jnp.concatenate(x) for x in zip(*parts))


def _numbered(which: Iterator[bool]) -> Iterator[int | None]:
  """Counts those that hold: the row of each stack's scales."""
  count = 0
  for holds in which:
    yield count if holds else None
    count += holds


def items_of(visible: Visible, layer: jax.Array, shape: Shape) -> Items:
  """The lists cut into steps, from each row's first filled page to its last; one at least."""
  B, m, steps = len(visible.pages_BT), shape.pages, shape.steps
  t, there_BT = jnp.arange(m * steps), filled(visible)
  first_B = jnp.where(there_BT, t, m * steps).min(1) // m
  end_B = jnp.where(there_BT, t // m + 1, 0).max(1)
  first_B = jnp.where(end_B > 0, first_B, 0)
  begin_B = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(jnp.maximum(end_B - first_B, 1))])
  total = begin_B[B]
  row_I = jnp.searchsorted(begin_B[1:], jnp.arange(B * steps), side='right', method='compare_all')
  half = jnp.clip(jnp.searchsorted(begin_B, total // 2), 1, max(1, B - 1))
  cuts = [0, begin_B[half], total] if B > 1 else [0, total]
  bounds_BT = jnp.where(there_BT, visible.from_BT + visible.to_BT * 2**16, 0) * shape.heads
  whole = lambda x: jnp.asarray(x, jnp.int32).reshape(-1)
  return Items(
    whole(layer),
    whole(jnp.maximum(visible.pages_BT, 0)),
    whole(bounds_BT),
    whole(jnp.minimum(row_I, B - 1)),
    whole(begin_B),
    whole(first_B),
    jnp.stack([whole(x)[0] for x in cuts]),
  )


def _call(
  q_BNH: jax.Array, memory: Memory, layer: jax.Array, visible: Visible, shape: Shape, interpret: Any
) -> tuple[jax.Array, jax.Array]:
  items, (B, N, H) = items_of(visible, layer, shape), q_BNH.shape
  by_row = lambda *block: pl.BlockSpec(
    (None, *block), lambda c, i, *s: (Items(*s).at(c, i)[0], *(0,) * len(block))
  )
  operands, specs = zip((q_BNH, by_row(N, H)), *_memory(N, memory, layer, visible, shape))
  grid = pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=len(items),
    grid=(len(items.core_C) - 1, (items.core_C[1:] - items.core_C[:-1]).max()),
    in_specs=specs,
    out_specs=[by_row(N, memory.width), by_row(N, 1)],
    scratch_shapes=[pltpu.VMEM((N, w), jnp.float32) for w in (1, 1, memory.width)],
  )
  o_BNV, lse_BN1 = pl.pallas_call(
    functools.partial(_step, shape=shape),
    grid_spec=grid,
    out_shape=[
      jax.ShapeDtypeStruct((B, N, memory.width), q_BNH.dtype),
      jax.ShapeDtypeStruct((B, N, 1), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=_cost(q_BNH, memory, shape),
    interpret=interpret,
    name='paged_attention',
  )(*items, *operands)
  return o_BNV, lse_BN1[..., 0]


def _memory(
  N: int, memory: Memory, layer: jax.Array, visible: Visible, shape: Shape
) -> Iterator[tuple[jax.Array, pl.BlockSpec]]:
  """Operands that belong to pages, and what of them a step reads; in the order of `_named`."""
  for stack in memory.stacks:
    pool = by_page(stack)
    yield from ((pool, _page(pool.shape, shape, j)) for j in range(shape.pages))
  if any(n is not None for n in shape.scales):
    x = _scales(memory, layer, visible, shape)
    index = lambda c, i, *s: (*Items(*s).at(c, i), 0, 0)
    yield x, pl.BlockSpec((None, None, *x.shape[2:]), index)
  if memory.heads > 1:
    own_NX = own_head(N, memory.heads, shape.pages * shape.rows)
    yield own_NX, pl.BlockSpec(own_NX.shape, lambda c, i, *s: (0, 0))


def by_page(stack: Stack) -> jax.Array:
  """The numbers as [n, P, rows, W]."""
  x = numbers(stack)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _page(pool: tuple[int, ...], shape: Shape, j: int) -> pl.BlockSpec:
  """The j-th page of an item."""

  def index(c: jax.Array, i: jax.Array, *scalars: Any) -> tuple:
    items = Items(*scalars)
    row, step = items.at(c, i)
    return items.layer_1[0], items.pages_X[(row * shape.steps + step) * shape.pages + j], 0, 0

  return pl.BlockSpec((None, None, *pool[2:]), index)


def _scales(memory: Memory, layer: jax.Array, visible: Visible, shape: Shape) -> jax.Array:
  """[B, steps, stacks, X]: those of each item, a row a stack."""
  pages_BT, steps = in_pool(visible.pages_BT, memory), (len(visible.pages_BT), shape.steps, -1)

  def read(scale: jax.Array) -> jax.Array:
    # The layer first: XLA lays scales out with the pages innermost, and would turn all of them.
    one = jax.lax.dynamic_index_in_dim(scale, layer, keepdims=False)
    return one.reshape(len(one), -1).at[pages_BT].get(mode='fill', fill_value=0).reshape(steps)

  return jnp.stack([read(s.scale) for s in memory.stacks if isinstance(s, Int8)], 2)


def own_head(N: int, heads: int, X: int) -> jax.Array:
  """0 where query head n's keys stand among the rows of pages, −inf elsewhere."""
  own_NX = jnp.arange(N)[:, None] // (N // heads) == jnp.arange(X) % heads
  return jnp.where(own_NX, 0.0, -jnp.inf).astype(jnp.float32)


def _cost(q_BNH: jax.Array, memory: Memory, shape: Shape) -> pl.CostEstimate:
  """Of full lists."""
  B, N, H = q_BNH.shape
  rows = B * shape.steps * shape.pages * shape.rows
  read = sum(numbers(s).shape[-1] * numbers(s).dtype.itemsize for s in memory.stacks)
  return pl.CostEstimate(
    flops=2 * N * rows * (H + memory.width),
    transcendentals=N * rows,
    bytes_accessed=rows * read + B * N * (H + memory.width) * q_BNH.dtype.itemsize,
  )


class Refs(NamedTuple):
  """What a step reads and writes."""

  q: Any
  pages: tuple[tuple[Any, ...], ...]  # of each stack
  scales: Any
  own: Any
  o: Any
  lse: Any
  top: Any
  total: Any
  sum: Any


def _named(refs: list, shape: Shape) -> Refs:
  """The references in the order in which `_call` and `_memory` hand them over."""
  take = iter(refs)
  q = next(take)
  pages = tuple(tuple(next(take) for _ in range(shape.pages)) for _ in shape.scales)
  scales = next(take) if any(n is not None for n in shape.scales) else None
  own = next(take) if shape.heads > 1 else None
  return Refs(q, pages, scales, own, *take)


def _step(*refs: Any, shape: Shape) -> None:
  """One item of a core."""
  items, r = Items(*refs[: len(Items._fields)]), _named(refs[len(Items._fields) :], shape)
  core, i = pl.program_id(0), pl.program_id(1)
  row, step = items.at(core, i)
  item = items.core_C[core] + i

  @pl.when(item < items.core_C[core + 1])
  def _():
    @pl.when(item == items.begin_B[row])
    def _():
      r.top[...] = jnp.full_like(r.top, -jnp.inf)
      r.total[...] = jnp.zeros_like(r.total)
      r.sum[...] = jnp.zeros_like(r.sum)

    at = (row * shape.steps + step) * shape.pages
    bounds = [items.bounds_X[at + j] for j in range(shape.pages)]
    whole = functools.reduce(jnp.logical_and, (b == shape.rows * 2**16 for b in bounds))
    pl.when(whole)(lambda: _visit(r, None, shape))
    pl.when(~whole)(lambda: _visit(r, [(b & 0xFFFF, b >> 16) for b in bounds], shape))

    @pl.when(item + 1 == items.begin_B[row + 1])
    def _():
      total_N1 = r.total[...]
      some_N1 = jnp.where(total_N1 == 0, 1, total_N1)
      r.o[...] = (r.sum[...] / some_N1).astype(r.o.dtype)
      r.lse[...] = jnp.where(total_N1 == 0, -jnp.inf, r.top[...] + jnp.log(some_N1))


def _visit(r: Refs, bounds: list[tuple] | None, shape: Shape) -> None:
  """Adds a step's pages to the sums; bounds: the rows seen of each page, None: all of them."""
  s_NX = _scores(r, shape)
  if bounds is not None:
    seen_1X = _seen((1, s_NX.shape[1]), 1, [(j * shape.rows, *b) for j, b in enumerate(bounds)])
    s_NX = jnp.where(seen_1X, s_NX, -jnp.inf)
  top_N1 = jnp.maximum(r.top[...], s_NX.max(1, keepdims=True))
  base_N1 = jnp.where(top_N1 == -jnp.inf, 0, top_N1)
  p_NX, kept_N1 = jnp.exp(s_NX - base_N1), jnp.exp(r.top[...] - base_N1)
  r.top[...] = top_N1
  r.total[...] = r.total[...] * kept_N1 + p_NX.sum(1, keepdims=True)
  which = -1 if shape.values else 0
  if shape.scales[which] is not None:
    scale_1X = _scale(r, shape.scales[which])
    p_NX *= scale_1X if bounds is None else jnp.where(seen_1X, scale_1X, 0)
  v_XV = _rows(r.pages[which], shape.width, r.q.dtype, bounds)
  r.sum[...] = r.sum[...] * kept_N1 + _dot(p_NX.astype(v_XV.dtype), v_XV, ((1,), (0,)))


def _scores(r: Refs, shape: Shape) -> jax.Array:
  """s_NX of all heads' queries with the rows of a step's pages; −inf for another head's."""
  s_NX, start = 0, 0
  for pages, width, n in zip(r.pages, shape.widths, shape.scales):
    q_NW = r.q[:, start : start + width]
    part_NX = _dot(q_NW, _rows(pages, width, r.q.dtype), ((1,), (1,)))
    s_NX += part_NX if n is None else part_NX * _scale(r, n)
    start += width
  s_NX *= shape.scale
  if shape.soft_cap is not None:
    s_NX = shape.soft_cap * jnp.tanh(s_NX / shape.soft_cap)
  return s_NX if r.own is None else s_NX + r.own[...]


def _scale(r: Refs, n: int) -> jax.Array:
  """The n-th stack's scales, [1, X]."""
  return r.scales[...].astype(jnp.float32)[n : n + 1]


def _rows(
  pages: tuple[Any, ...], width: int, dtype: jnp.dtype, bounds: list[tuple] | None = None
) -> jax.Array:
  """Pages below each other; with bounds, 0 in place of rows that are not seen."""
  rows = [x[...] if x.shape[-1] == width else x[:, :width] for x in pages]
  if bounds is not None:
    # Selected in fp32: a v4 has no narrower vectors.
    masks = [_seen((len(x), 1), 0, [(0, *b)]) for x, b in zip(rows, bounds)]
    rows = [jnp.where(mask, x.astype(jnp.float32), 0) for mask, x in zip(masks, rows)]
  rows = [x.astype(dtype) for x in rows]
  return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def _seen(shape: tuple[int, int], axis: int, parts: list[tuple]) -> jax.Array:
  """Where an index lies between start + low and start + high of one of the parts."""
  at = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
  inside = ((at >= start + low) & (at < start + high) for start, low, high in parts)
  return functools.reduce(jnp.logical_or, inside)


def _dot(x: jax.Array, y: jax.Array, axes: tuple) -> jax.Array:
  """A product summed in fp32, of fp32 to its precision."""
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x, y, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32
  )
