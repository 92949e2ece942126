"""What the TPU kernels of selected attention share: how pages are stored, listed and copied.

One step of the grid (row, query, kv head, step) is `some pages` of a query's list. While it is
computed, the pages of the next step (of the next query, at the end of a list) are copied from HBM
into the other half of a buffer.

Single tokens: a row of an array that is tiled by 8 or 16 rows cannot be copied alone. Keys are
laid out as [M, 32 bits / dtype, W] first, W a multiple of 128: a token is then whole tiles, and of
bf16 the first half lies in the low, the second in the high bits of 32-bit words. That costs one
copy of the keys.
Pages of 8 rows in fp32 or 16 in bf16, or of a multiple, need no such layout; others are listed as
single tokens.

What is listed as −1, or out of range, becomes a spare page of zeros behind the others, one for each
place of a step: every step copies as many bytes, and waits but once.

A copy is started by a dozen scalar instructions, and single tokens are copies in thousands: hence
COPIES in a turn of the loop and, as every id is in range by now, no check of bounds.

A segment's keys stand side by side: what a query sees is then a range of places, two numbers that
travel with its list.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import BEYOND, Tokens, tokens_of

ROWS = 512  # of keys in one step of the grid
LANES = 128
COPIES = 8  # started in one turn of a loop


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static facts of one call."""

  rows: int  # B, or twice that where the queries of a row are split between two cores
  split: int
  length: int  # queries of such a row
  heads: int  # K
  lists: int  # K or 1
  group: int
  size: int  # of a page; 1: single tokens in packed layout
  pages: int  # of a step
  steps: int  # of a list
  key: int  # width of queries and keys
  value: int  # and of values
  scale: float

  @property
  def places(self) -> int:
    """Keys of one step."""
    return self.pages * self.size

  @property
  def grid(self) -> tuple[int, int, int, int]:
    """Rows, which cores share, their queries, kv heads, steps of a list."""
    return self.rows, self.length, self.heads, self.steps


class Listed(NamedTuple):
  """Lists and pages as the kernels take them."""

  lists_RL1X: jax.Array  # ids, and the range of places that the query sees
  ids_RLXT: jax.Array  # ids again, a row a step
  stores: list[jax.Array]  # keys, and values where they are not in the keys


def listed(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLKT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  size: int,
  scale: float,
  width: int,
  split: int,
) -> tuple[Shape, Listed]:
  """One call's static facts and what every kernel reads; `split` cuts each row's queries."""
  (B, L, N, H), K = q_BLNH.shape, k_BMKH.shape[2]
  if size > 1 and size % (32 // k_BMKH.dtype.itemsize):
    ids_BLKT, size = tokens_of(ids_BLKT, size), 1
  pages = min(ids_BLKT.shape[-1], max(1, ROWS // size))
  ids_BLKT = jnp.pad(
    ids_BLKT, ((0, 0),) * 3 + ((0, -ids_BLKT.shape[-1] % pages),), constant_values=-1
  )
  whole = k_BMKH.shape[1] // size
  spare_T = whole + jnp.arange(ids_BLKT.shape[-1], dtype=ids_BLKT.dtype) % pages
  ids_BLKT = jnp.where((ids_BLKT >= 0) & (ids_BLKT < whole), ids_BLKT, spare_T)
  shape = Shape(
    rows=B * split,
    split=split,
    length=L // split,
    heads=K,
    lists=ids_BLKT.shape[2],
    group=N // K,
    size=size,
    pages=pages,
    steps=ids_BLKT.shape[-1] // pages,
    key=H,
    value=width,
    scale=scale,
  )
  lists_BLX = jnp.concatenate([ids_BLKT.reshape(B, L, -1), *seen_ranges(queries, keys)], axis=-1)
  stores = [stored(x, size, pages) for x in (k_BMKH, v_BMKV) if x is not None]
  return shape, Listed(
    in_rows(shape, lists_BLX, 1, -1),
    in_rows(shape, ids_BLKT, shape.lists * shape.steps, pages),
    stores,
  )


def in_rows(shape: Shape, x_BL: jax.Array, *last: int) -> jax.Array:
  """[B, L, …] as [R, L / split, *last]."""
  return x_BL.reshape(shape.rows, shape.length, *last)


def stored(x_BMKH: jax.Array, size: int, spare: int) -> jax.Array:
  """Pages that can be copied one by one: [B, K, P, size, H], single tokens [B, K, M, pack, W]."""
  x_BMKH = jnp.pad(x_BMKH, ((0, 0), (0, spare * size), (0, 0), (0, 0)))
  if size > 1:
    return rearrange(x_BMKH, 'B (P S) K H -> B K P S H', S=size)
  pack = 4 // x_BMKH.dtype.itemsize
  x_BMKH = jnp.pad(x_BMKH, ((0, 0),) * 3 + ((0, -x_BMKH.shape[-1] % (pack * LANES)),))
  return rearrange(x_BMKH, 'B M K (p W) -> B K M p W', p=pack)


def seen_ranges(queries: Tokens, keys: Tokens) -> tuple[jax.Array, jax.Array]:
  """First place that a query sees, and the one after the last, [B, L, 1]; segment 0 sees none."""
  padding_BM = keys.segments_BM == 0
  started_BM = jax.lax.cummax(keys.segments_BM, axis=1)
  running_BM = jax.lax.cummin(jnp.where(padding_BM, BEYOND, keys.segments_BM), axis=1, reverse=True)
  index_BM = jax.lax.cummax(jnp.where(padding_BM, -1, keys.index_BM), axis=1)
  find = lambda side: jax.vmap(functools.partial(jnp.searchsorted, side=side))
  low_BL = find('left')(started_BM, queries.segments_BM)
  high_BL = jnp.minimum(
    find('right')(running_BM, queries.segments_BM),
    find('right')(index_BM, queries.index_BM),
  )
  high_BL = jnp.where(queries.segments_BM > 0, high_BL, 0)
  return tuple(x.astype(jnp.int32)[..., None] for x in (low_BL, high_BL))


# The operands and buffers of a call.


def block(*last: int) -> pl.BlockSpec:
  """A query's and kv head's part of [R, L, K, *last]."""
  return pl.BlockSpec((1, 1, 1, *last), lambda r, l, k, c: (r, l, k, 0, 0))


def list_operands(s: Shape, listed: Listed) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
  """Lists of this query and of the next, whose pages are copied ahead, in scalar memory."""
  lists_RL1X, ids_RLXT, _ = listed
  spec = lambda index: pl.BlockSpec((1, 1, 1, lists_RL1X.shape[-1]), index, memory_space=pltpu.SMEM)
  arrays = [lists_RL1X, lists_RL1X]
  specs = [
    spec(lambda r, l, k, c: (r, l, 0, 0)),
    spec(lambda r, l, k, c: (r, jnp.minimum(l + 1, s.length - 1), 0, 0)),
  ]
  if s.size == 1:  # as a vector, too
    arrays.append(ids_RLXT)
    specs.append(pl.BlockSpec((1, 1, *ids_RLXT.shape[2:]), lambda r, l, k, c: (r, l, 0, 0)))
  return arrays, specs


def page_buffers(s: Shape, stores: list[jax.Array]) -> list[Any]:
  """Two halves of a buffer for the pages of a step, and their semaphores."""
  buffers = [pltpu.VMEM((2, s.pages, *x.shape[3:]), x.dtype) for x in stores]
  return [*buffers, pltpu.SemaphoreType.DMA((2, len(stores)))]


def compiler_params() -> pltpu.CompilerParams:
  """Rows of the grid are independent; all copies are in bounds."""
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'arbitrary', 'arbitrary', 'arbitrary'),
    disable_bounds_checks=True,
  )


def cost(
  s: Shape, widths: int, stores: list[jax.Array], more: int, rest: list[jax.Array]
) -> pl.CostEstimate:
  """Dot products of `widths` in all for a query head and place, `more` bytes moved for a place."""
  items = s.rows * s.length * s.heads * s.steps * s.places
  read = sum(math.prod(x.shape[3:]) * x.dtype.itemsize for x in stores) // s.size
  return pl.CostEstimate(
    flops=2 * items * s.group * widths,
    transcendentals=items * s.group,
    bytes_accessed=items * (read + more) + sum(x.size * x.dtype.itemsize for x in rest),
  )


# Inside the kernels.


def next_pages(s: Shape, here_ref, next_ref, stores, buffers, semaphores) -> list:
  """Starts to copy the pages of the next step and waits for this step's; gives these."""
  r, l, k, c = (pl.program_id(axis) for axis in range(4))
  step = step_of(s)
  # lax.rem and lax.div: the signs that `%` and `//` look at do not lower without a TPU at hand.
  slot, ahead = jax.lax.rem(step, 2), jax.lax.rem(step + 1, 2)
  copy = functools.partial(_copy, s, stores, buffers, semaphores, jax.lax.div(r, s.split))

  @pl.when(step == 0)
  def _first():
    copy(here_ref, k, c, slot)

  ends = c + 1 == s.steps

  @pl.when(jnp.logical_not(ends & (k + 1 == s.heads)))
  def _same_query():
    copy(here_ref, jnp.where(ends, k + 1, k), jnp.where(ends, 0, c + 1), ahead)

  @pl.when(ends & (k + 1 == s.heads) & (l + 1 < s.length))
  def _next_query():
    copy(next_ref, 0, 0, ahead)

  for i, buffer in enumerate(buffers):
    wait(buffer.at[slot], semaphores.at[slot, i])
  return [buffer.at[slot] for buffer in buffers]


def step_of(s: Shape) -> jax.Array:
  """Which step of its row this is."""
  return (pl.program_id(1) * s.heads + pl.program_id(2)) * s.steps + pl.program_id(3)


def wait(buffer, semaphore) -> None:
  """Waits for copies of as many bytes as the whole buffer has."""
  pltpu.make_async_copy(buffer, buffer, semaphore).wait()


def each_page(s: Shape, lists_ref, k, c, do: Callable) -> None:
  """do(t, page) for the pages of step c of head k."""
  start, together = _row(s, k, c) * s.pages, math.gcd(s.pages, COPIES)

  def some(i, _):
    at = start + i * together
    for j in range(together):
      do(i * together + j, lists_ref[0, 0, 0, at + j])

  jax.lax.fori_loop(0, s.pages // together, some, None)


def _copy(s: Shape, stores, buffers, semaphores, b, lists_ref, k, c, slot):
  """Starts the copies of the pages of a step."""

  def one(t, page):
    for i, (store, buffer) in enumerate(zip(stores, buffers)):
      pltpu.make_async_copy(
        store.at[b, k, page], buffer.at[slot, t], semaphores.at[slot, i]
      ).start()

  each_page(s, lists_ref, k, c, one)


def _row(s: Shape, k, c):
  """Which step of all of a query's lists is step c of head k."""
  return (k if s.lists > 1 else 0) * s.steps + c


def seen(s: Shape, lists_ref, vector_ref) -> jax.Array:
  """Which keys of this step the query sees, [1, Z]."""
  place_1Z = _places(s, lists_ref, vector_ref, _row(s, pl.program_id(2), pl.program_id(3)))
  last = lists_ref.shape[-1]
  return (place_1Z >= lists_ref[0, 0, 0, last - 2]) & (place_1Z < lists_ref[0, 0, 0, last - 1])


def _places(s: Shape, lists_ref, vector_ref, row):
  """The place in memory of each key of the step, [1, Z]; a spare page's behind all that is seen."""
  if vector_ref is not None:
    return vector_ref[0, 0, pl.ds(row, 1), :]
  z_1Z = jax.lax.broadcasted_iota(jnp.int32, (1, s.places), 1)
  place_1Z = jnp.full((1, s.places), -1, jnp.int32)
  for t in range(s.pages):
    inside = (z_1Z >= t * s.size) & (z_1Z < (t + 1) * s.size)
    page = lists_ref[0, 0, 0, row * s.pages + t]
    place_1Z = jnp.where(inside, (page - t) * s.size + z_1Z, place_1Z)
  return place_1Z


def columns(s: Shape, ref) -> list[jax.Array]:
  """Keys or values of the step as column blocks [Z, W]."""
  if s.size > 1:
    return [ref[...].reshape(s.places, ref.shape[-1])]
  if ref.dtype.itemsize == 4:
    return [ref.reshape(s.places, ref.shape[-1])[...]]
  words = ref.bitcast(jnp.uint32).reshape(s.places, ref.shape[-1])[...]
  as_float = lambda x: jax.lax.bitcast_convert_type(x, jnp.float32).astype(ref.dtype)
  return [as_float(words << 16), as_float(words & jnp.uint32(0xFFFF0000))]


def products(x_GH: jax.Array, columns: list[jax.Array], width: int) -> jax.Array:
  """x · keysᵀ over the first `width` numbers, [G, Z]."""
  W = columns[0].shape[-1]
  return sum(
    dot(x_GH[:, i * W : (i + 1) * W], block_ZW[:, : width - i * W], 1, 1)
    for i, block_ZW in enumerate(columns)
    if i * W < width
  )


def add_products(sum_ref, p_GZ: jax.Array, columns: list[jax.Array], width: int) -> None:
  """sum += p · values, over their first `width` columns."""
  W = columns[0].shape[-1]
  for i, block_ZW in enumerate(columns):
    at = slice(i * W, min((i + 1) * W, width))
    if at.start < width:
      sum_ref[:, at] += dot(p_GZ, block_ZW[:, : at.stop - at.start], 1, 0)


def dot(a: jax.Array, b: jax.Array, in_a: int, in_b: int) -> jax.Array:
  """a · b over the given axes, summed in fp32; fp32 factors are not rounded to bf16."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dims = (((in_a,), (in_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, precision, preferred_element_type=jnp.float32)


def as_row(x_G1: jax.Array) -> jax.Array:
  """A column as a row: picked off the diagonal, for Mosaic transposes no single column."""
  return jnp.where(_diagonal(x_G1.shape[0]), x_G1, -jnp.inf).max(0, keepdims=True)


def as_column(x_1G: jax.Array) -> jax.Array:
  """And back."""
  return jnp.where(_diagonal(x_1G.shape[1]), x_1G, -jnp.inf).max(1, keepdims=True)


def _diagonal(n: int):
  """Of n × n; a maximum picks −inf off it, of which a sum or a product with 0 makes NaN."""
  ids = [jax.lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in (0, 1)]
  return ids[0] == ids[1]
