"""Attention over listed pages on TPU: pages are copied from HBM as they are listed, read once.

One step of the grid is one query, one kv head and `some pages` of its list. While it is computed,
the pages of the next step (of the next query, at the end of a list) are copied into the other half
of a buffer. The softmax runs on over the steps of a list (m, l, o in VMEM).

Single tokens: a row of an array that is tiled by 8 or 16 rows cannot be copied alone. Keys are
laid out as [M, 32 bits / dtype, W] first, W a multiple of 128: a token is then whole tiles, and of
bf16 the first half lies in the low, the second in the high bits of 32-bit words. That costs one
copy of the keys.
Pages of 8 rows in fp32 or 16 in bf16, or of a multiple, need no such layout; others are listed as
single tokens.

A segment's keys stand side by side: what a query sees is then a range of places, two numbers that
travel with its list. Cost 2·B·L·N·Z·(H + V) flops and B·L·K·Z·(H + V) numbers read, Z = T·size.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import BEYOND, Tokens

ROWS = 512  # of keys in one step of the grid
LANES = 128


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
  value: int  # of values, in whole lanes
  scale: float

  @property
  def places(self) -> int:
    """Keys of one step."""
    return self.pages * self.size


def refuses(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array | None) -> str | None:
  """Why the kernel cannot serve these arrays; None if it can."""
  dtypes = {x.dtype for x in (q_BLNH, k_BMKH, v_BMKV) if x is not None}
  if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}:
    return f'takes bfloat16 or float32 alone, {", ".join(sorted(str(d) for d in dtypes))} given'
  return None


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLKT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  size: int,
  scale: float,
  width: int,
  interpret=False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); without v the value is the first `width` numbers of the key."""
  (B, L, N, H), K = q_BLNH.shape, k_BMKH.shape[2]
  if size > 1 and size % (32 // k_BMKH.dtype.itemsize):
    ids_BLKT, size = tokens_of(ids_BLKT, size), 1
  pages = min(ids_BLKT.shape[-1], max(1, ROWS // size))
  ids_BLKT = jnp.pad(
    ids_BLKT, ((0, 0),) * 3 + ((0, -ids_BLKT.shape[-1] % pages),), constant_values=-1
  )
  stores = [stored(x, size) for x in (k_BMKH, v_BMKV) if x is not None]
  split = 2 if L % 2 == 0 else 1
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
    value=-(-width // LANES) * LANES,
    scale=scale,
  )
  lists_BLX = jnp.concatenate([ids_BLKT.reshape(B, L, -1), *seen_ranges(queries, keys)], axis=-1)
  o, lse = _call(shape, q_BLNH, lists_BLX, ids_BLKT, stores, interpret)
  return o.reshape(B, L, N, -1)[..., :width], lse.reshape(B, L, N)


def tokens_of(ids_BLKT: jax.Array, size: int) -> jax.Array:
  """Lists of pages as lists of single places."""
  places = ids_BLKT[..., None] * size + jnp.arange(size)
  places = jnp.where(ids_BLKT[..., None] < 0, -1, places)
  return places.reshape(*ids_BLKT.shape[:3], -1)


def stored(x_BMKH: jax.Array, size: int) -> jax.Array:
  """Pages that can be copied one by one: [B, K, P, size, H], single tokens [B, K, M, pack, W]."""
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


def _call(shape: Shape, q_BLNH, lists_BLX, ids_BLKT, stores, interpret):
  """The kernel: (o [R, L, K, G, V], lse [R, L, K, 1, G])."""
  s, dtype = shape, stores[0].dtype
  split = lambda x, *more: x.reshape(s.rows, s.length, *more)
  # The scalar memory holds the lists of this query and of the next, whose pages are copied ahead.
  list_spec = lambda index: pl.BlockSpec(
    (1, 1, 1, lists_BLX.shape[-1]), index, memory_space=pltpu.SMEM
  )
  block = lambda *last: pl.BlockSpec((1, 1, 1, *last), lambda r, l, k, c: (r, l, k, 0, 0))
  lists = split(lists_BLX, 1, -1)
  inputs = [lists, lists, split(q_BLNH, s.heads, s.group, s.key)]
  in_specs = [
    list_spec(lambda r, l, k, c: (r, l, 0, 0)),
    list_spec(lambda r, l, k, c: (r, jnp.minimum(l + 1, s.length - 1), 0, 0)),
    block(s.group, s.key),
  ]
  if s.size == 1:  # as a vector, too
    inputs.append(split(ids_BLKT, s.lists * s.steps, s.pages))
    in_specs.append(
      pl.BlockSpec((1, 1, s.lists * s.steps, s.pages), lambda r, l, k, c: (r, l, 0, 0))
    )
  buffers = [pltpu.VMEM((2, s.pages, *x.shape[3:]), dtype) for x in stores]
  reads = sum(math.prod(x.shape[3:]) for x in stores) // s.size
  out = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q_BLNH).mat)
  items = s.rows * s.length * s.heads * s.steps * s.places
  return pl.pallas_call(
    functools.partial(_kernel, shape, len(stores)),
    grid=(s.rows, s.length, s.heads, s.steps),
    in_specs=in_specs + [pl.BlockSpec(memory_space=pl.ANY)] * len(stores),
    out_specs=[block(s.group, s.value), block(1, s.group)],
    out_shape=[
      out((s.rows, s.length, s.heads, s.group, s.value), dtype),
      out((s.rows, s.length, s.heads, 1, s.group), jnp.float32),
    ],
    scratch_shapes=[
      *buffers,
      pltpu.SemaphoreType.DMA((2, len(stores))),
      pltpu.VMEM((s.group, 1), jnp.float32),
      pltpu.VMEM((s.group, 1), jnp.float32),
      pltpu.VMEM((s.group, s.value), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary', 'arbitrary')
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * items * s.group * (s.key + s.value),
      transcendentals=items * s.group,
      bytes_accessed=items * reads * dtype.itemsize + 2 * q_BLNH.nbytes + lists_BLX.nbytes,
    ),
    interpret=interpret,
  )(*inputs, *stores)


def _kernel(shape: Shape, arrays: int, here_ref, next_ref, q_ref, *refs):
  """One step: copy ahead, wait for this step's pages, go on with the softmax."""
  s = shape
  vector_ref, refs = (refs[0], refs[1:]) if s.size == 1 else (None, refs)
  stores, (o_ref, lse_ref), refs = refs[:arrays], refs[arrays : arrays + 2], refs[arrays + 2 :]
  buffers, (semaphores, top_ref, total_ref, sum_ref) = refs[:arrays], refs[arrays:]
  r, l, k, c = (pl.program_id(axis) for axis in range(4))
  step = (l * s.heads + k) * s.steps + c
  # lax.rem and lax.div: the signs that `%` and `//` look at do not lower without a TPU at hand.
  slot, ahead = jax.lax.rem(step, 2), jax.lax.rem(step + 1, 2)
  b = jax.lax.div(r, s.split)
  copy = functools.partial(_copy_pages, s, stores, buffers, semaphores, b)

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

  @pl.when(c == 0)
  def _begin():
    top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
    total_ref[...] = jnp.zeros_like(total_ref)
    sum_ref[...] = jnp.zeros_like(sum_ref)

  for i, buffer in enumerate(buffers):
    # Waits for as many bytes as all pages of the step have.
    pltpu.make_async_copy(buffer.at[slot], buffer.at[slot], semaphores.at[slot, i]).wait()
  place_1Z = _places(s, here_ref, vector_ref, _list(s, k) * s.steps + c)
  last = here_ref.shape[-1]
  seen_1Z = (place_1Z >= here_ref[0, 0, 0, last - 2]) & (place_1Z < here_ref[0, 0, 0, last - 1])
  parts = [_parts(s, buffer.at[slot]) for buffer in buffers]
  _attend(s, q_ref[0, 0, 0], parts[0], parts[-1], seen_1Z, top_ref, total_ref, sum_ref)

  @pl.when(ends)
  def _finish():
    total_G1 = total_ref[...]
    some_G1 = jnp.where(total_G1 == 0, 1, total_G1)
    o_ref[0, 0, 0] = (sum_ref[...] / some_G1).astype(o_ref.dtype)
    lse_G1 = jnp.where(total_G1 == 0, -jnp.inf, top_ref[...] + jnp.log(some_G1))
    lse_ref[0, 0, 0] = _as_row(lse_G1)


def _list(s: Shape, k):
  """Which of the lists kv head k has."""
  return k if s.lists > 1 else 0


def _copy_pages(s: Shape, stores, buffers, semaphores, b, lists_ref, k, c, slot):
  """Starts the copies of the pages of step c of head k; −1 copies page 0: always as many."""
  start = (_list(s, k) * s.steps + c) * s.pages

  def one(t, _):
    page = jnp.maximum(lists_ref[0, 0, 0, start + t], 0)
    for i, (store, buffer) in enumerate(zip(stores, buffers)):
      pltpu.make_async_copy(
        store.at[b, k, page], buffer.at[slot, t], semaphores.at[slot, i]
      ).start()

  jax.lax.fori_loop(0, s.pages, one, None)


def _places(s: Shape, lists_ref, vector_ref, row):
  """The place in memory of each key of the step, [1, Z]; negative where no page is listed."""
  if vector_ref is not None:
    return vector_ref[0, 0, pl.ds(row, 1), :]
  z_1Z = jax.lax.broadcasted_iota(jnp.int32, (1, s.places), 1)
  place_1Z = jnp.full((1, s.places), -1, jnp.int32)
  for t in range(s.pages):
    inside = (z_1Z >= t * s.size) & (z_1Z < (t + 1) * s.size)
    page = lists_ref[0, 0, 0, row * s.pages + t]
    place_1Z = jnp.where(inside, (page - t) * s.size + z_1Z, place_1Z)
  return place_1Z


def _parts(s: Shape, ref) -> list:
  """Keys or values of the step as column blocks [Z, W]."""
  if s.size > 1:
    return [ref[...].reshape(s.places, ref.shape[-1])]
  if ref.dtype.itemsize == 4:
    return [ref.reshape(s.places, ref.shape[-1])[...]]
  words = ref.bitcast(jnp.uint32).reshape(s.places, ref.shape[-1])[...]
  as_float = lambda x: jax.lax.bitcast_convert_type(x, jnp.float32).astype(ref.dtype)
  return [as_float(words << 16), as_float(words & jnp.uint32(0xFFFF0000))]


def _attend(s: Shape, q_GH, keys, values, seen_1Z, top_ref, total_ref, sum_ref):
  """Goes on with the softmax over the keys of one step."""
  dot = functools.partial(
    jax.lax.dot_general,
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST if q_GH.dtype == jnp.float32 else None,
  )
  W = keys[0].shape[-1]
  by_columns = (((1,), (1,)), ((), ()))
  s_GZ = s.scale * sum(
    dot(q_GH[:, i * W : (i + 1) * W], key_ZW[:, : s.key - i * W], by_columns)
    for i, key_ZW in enumerate(keys)
    if i * W < s.key
  )
  s_GZ = jnp.where(seen_1Z, s_GZ, -jnp.inf)
  top_G1 = jnp.maximum(top_ref[...], s_GZ.max(-1, keepdims=True))
  base_G1 = jnp.where(top_G1 == -jnp.inf, 0, top_G1)
  p_GZ, kept_G1 = jnp.exp(s_GZ - base_G1), jnp.exp(top_ref[...] - base_G1)
  top_ref[...] = top_G1
  total_ref[...] = total_ref[...] * kept_G1 + p_GZ.sum(-1, keepdims=True)
  p_GZ, W = p_GZ.astype(q_GH.dtype), values[0].shape[-1]
  for i, value_ZW in enumerate(values):
    at = slice(i * W, min((i + 1) * W, s.value))
    if at.start < s.value:
      more = dot(p_GZ, value_ZW[:, : at.stop - at.start], (((1,), (0,)), ((), ())))
      sum_ref[:, at] = sum_ref[:, at] * kept_G1 + more


def _as_row(x_G1):
  """A column as a row: picked off the diagonal, for Mosaic transposes no single column."""
  G = x_G1.shape[0]
  diagonal = jax.lax.broadcasted_iota(jnp.int32, (G, G), 0) == jax.lax.broadcasted_iota(
    jnp.int32, (G, G), 1
  )
  # −inf must not meet a zero in a product or a sum of signs: a maximum keeps it.
  return jnp.where(diagonal, x_G1, -jnp.inf).max(0, keepdims=True)
