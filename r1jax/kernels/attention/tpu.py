"""Block-sparse attention on TPU (v4 and later): Pallas kernels over the blocks that visits name.

    forward    s = cap(scale · k qᵀ),  p = exp(s − max),  o = vᵀ p / Σ p,  lse = max + log Σ p
    backward   p = exp(s − lse),  ds = p · (v doᵀ − delta),  dq = kᵀ ds;   dk = ds q,  dv = p do

Scores stand with keys down (sublanes) and queries across (lanes). The G query heads of a kv head
lie side by side, R = G·S columns for a block of S queries: a key block is read once a group, a
maximum or sum over keys is elementwise but for its last step, and what is kept of a query (maximum,
sum, lse, delta, index, segment) is one row. q, do and o are therefore transposed inside their
blocks; XLA does that on the way in and out.

Grid (B, K, I, T): block i of a row meets its t-th visited block, T is the greatest count. Firsts
and counts, or ids, are prefetched scalars and choose the block to load; steps past a count name the
last block again, which copies nothing, and compute nothing. In d_key_value I are blocks of keys,
and what they visit are queries.

Cost of two blocks that meet: R·Z pairs of 2(H+V) flops forward, 2(2H+V) in d_query and 4(H+V) in
d_key_value, and one read of the visited block. HBM beside the results: a transposed copy of each
array, and 2 scalars a block (listed, T + 1). VMEM of two blocks, whatever the length.

Letters: S queries and Z keys of a block, R = G·S, I and J blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import Band, Listed, Range, Sizes, Tokens, Visits

LANES = 128
SCALARS = 126 * 2**13  # bytes of scalar memory for visits; of its 2²⁰ the compiler wants some
FLOOR = -1e30  # where running maxima start: under every score
UNSEEN = -1e38  # added to scores that are not seen: exp(UNSEEN − FLOOR) is 0, without a select

Interpret = bool | pltpu.InterpretParams


class Scoring(NamedTuple):
  """What makes a score of a query and a key."""

  band: Band
  scale: float
  soft_cap: float | None


class Walk(NamedTuple):
  """Who visits whom in one call: `per_block` ids a block, or None where scalars are ranges."""

  scalars: tuple[jax.Array, jax.Array]
  per_block: int | None
  most: int
  interpret: Interpret


def default_sizes(band: Band, group: int, length: int, memory: int) -> Sizes:
  """About 512 columns by 512 keys, less in a narrow band; what fits v4's vector memory."""
  up = lambda n: -(-n // LANES) * LANES
  # A block of queries meets some far + S + Z keys, of which each query sees `far`.
  half = 512 if band.far is None else up((band.far - band.near) // 2 or 1)
  query = min(up(-(-512 // group)), half, up(length))
  return Sizes(query, min(max(LANES, up(2**19 // (group * query))), half, 512, up(memory)))


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
  visits: Visits,
  most: int,
  sizes: Sizes,
  band: Band,
  scale: float,
  soft_cap: float | None = None,
  interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, fp32 lse_BLN); lengths are multiples of the block sizes, these of 128."""
  K, V = k_BMKH.shape[2], v_BMKV.shape[3]
  q_BKIHR = _columns(q_BLNH, K, sizes)
  *BKI, H, R = q_BKIHR.shape
  o_BKIVR, lse_BKI1R = _call(
    functools.partial(_forward_visit, scoring=Scoring(band, scale, soft_cap)),
    _forward_end,
    _walk(visits, most, sizes, interpret),
    here=[q_BKIHR, _query_tokens(queries, sizes)],
    there=_key_side(k_BMKH, v_BMKV, keys, sizes),
    made=[((*BKI, V, R), v_BMKV.dtype), ((*BKI, 1, R), jnp.float32)],
    kept=[((1, R), FLOOR), ((1, R), 0), ((V, R), 0)],
    pairs=R * sizes.key,
    widths=H + V,
  )
  return _uncolumns(o_BKIVR, sizes), _uncolumns(lse_BKI1R, sizes)[..., 0]


def d_query(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  queries: Tokens,
  keys: Tokens,
  visits: Visits,
  most: int,
  sizes: Sizes,
  band: Band,
  scale: float,
  soft_cap: float | None = None,
  interpret: Interpret = False,
) -> jax.Array:
  """dq_BLNH; delta = Σ do·o − dlse."""
  here = _query_side(q_BLNH, do_BLNV, lse_BLN, delta_BLN, queries, k_BMKH.shape[2], sizes)
  *_, H, R = here[0].shape
  (dq_BKIHR,) = _call(
    functools.partial(_d_query_visit, scoring=Scoring(band, scale, soft_cap)),
    functools.partial(_scaled_end, scales=(scale,)),
    _walk(visits, most, sizes, interpret),
    here=here,
    there=_key_side(k_BMKH, v_BMKV, keys, sizes),
    made=[(here[0].shape, q_BLNH.dtype)],
    kept=[((H, R), 0)],
    pairs=R * sizes.key,
    widths=2 * H + v_BMKV.shape[3],
  )
  return _uncolumns(dq_BKIHR, sizes)


def d_key_value(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  queries: Tokens,
  keys: Tokens,
  visits: Visits,
  most: int,
  sizes: Sizes,
  band: Band,
  scale: float,
  soft_cap: float | None = None,
  interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array]:
  """(dk_BMKH, dv_BMKV); `visits` are the query blocks that each key block visits."""
  there = _query_side(q_BLNH, do_BLNV, lse_BLN, delta_BLN, queries, k_BMKH.shape[2], sizes)
  here = _key_side(k_BMKH, v_BMKV, keys, sizes)
  *_, H, R = there[0].shape
  grads = _call(
    functools.partial(_d_key_value_visit, scoring=Scoring(band, scale, soft_cap)),
    functools.partial(_scaled_end, scales=(scale, 1)),
    _walk(visits, most, sizes, interpret),
    here=here,
    there=there,
    made=[(x.shape, x.dtype) for x in here[:2]],
    kept=[(x.shape[3:], 0) for x in here[:2]],
    pairs=R * sizes.key,
    widths=2 * (H + v_BMKV.shape[3]),
  )
  return tuple(rearrange(x, 'B K J Z H -> B (J Z) K H') for x in grads)


# What happens when two blocks meet, and at the end.


def _forward_visit(q_ref, here_ref, k_ref, v_ref, there_ref, top_ref, total_ref, o_ref, *, scoring):
  """Online softmax down the keys."""
  s_ZR, _ = _scores(q_ref[...], k_ref[...], here_ref[...], there_ref[...], scoring)
  top_1R = jnp.maximum(top_ref[...], s_ZR.max(0, keepdims=True))
  p_ZR = jnp.exp(s_ZR - top_1R)
  left_1R = jnp.exp(top_ref[...] - top_1R)
  top_ref[...] = top_1R
  total_ref[...] = left_1R * total_ref[...] + p_ZR.sum(0, keepdims=True)
  o_ref[...] = left_1R * o_ref[...] + _dot(v_ref[...], p_ZR.astype(v_ref.dtype), 0, 0)


def _forward_end(o_ref, lse_ref, top_ref, total_ref, sum_ref):
  """A query that saw nothing gets 0 and −inf."""
  seen_1R = total_ref[...] > 0
  total_1R = jnp.where(seen_1R, total_ref[...], 1)
  o_ref[...] = (sum_ref[...] / total_1R).astype(o_ref.dtype)
  lse_ref[...] = jnp.where(seen_1R, top_ref[...] + jnp.log(total_1R), -jnp.inf)


def _d_query_visit(
  q_ref, do_ref, lse_ref, delta_ref, here_ref, k_ref, v_ref, there_ref, dq_ref, *, scoring
):
  """dq += kᵀ ds, before the scale."""
  pair = (q_ref, do_ref, lse_ref, delta_ref, here_ref, k_ref, v_ref, there_ref)
  _, ds_ZR = _d_scores(*(x[...] for x in pair), scoring)
  dq_ref[...] += _dot(k_ref[...], ds_ZR.astype(k_ref.dtype), 0, 0)


def _d_key_value_visit(
  k_ref, v_ref, there_ref, q_ref, do_ref, lse_ref, delta_ref, here_ref, dk_ref, dv_ref, *, scoring
):
  """dk += ds q, before the scale; dv += p do."""
  pair = (q_ref, do_ref, lse_ref, delta_ref, here_ref, k_ref, v_ref, there_ref)
  p_ZR, ds_ZR = _d_scores(*(x[...] for x in pair), scoring)
  dk_ref[...] += _dot(ds_ZR.astype(q_ref.dtype), q_ref[...], 1, 1)
  dv_ref[...] += _dot(p_ZR.astype(do_ref.dtype), do_ref[...], 1, 1)


def _scaled_end(*refs, scales):
  """Sums to results."""
  n = len(scales)
  for made_ref, sum_ref, scale in zip(refs[:n], refs[n:], scales):
    made_ref[...] = (scale * sum_ref[...]).astype(made_ref.dtype)


def _d_scores(q_HR, do_VR, lse_1R, delta_1R, here_2S, k_ZH, v_ZV, there_2Z, scoring):
  """Probabilities and the gradient of the scaled scores."""
  s_ZR, slope = _scores(q_HR, k_ZH, here_2S, there_2Z, scoring)
  p_ZR = jnp.exp(s_ZR - lse_1R)
  return p_ZR, p_ZR * (_dot(v_ZV, do_VR) - delta_1R) * slope


def _scores(q_HR, k_ZH, here_2S, there_2Z, scoring):
  """Scores, UNSEEN lower where not seen, and the soft cap's derivative."""
  s_ZR, slope = scoring.scale * _dot(k_ZH, q_HR), 1.0
  if scoring.soft_cap is not None:
    tanh_ZR = jnp.tanh(s_ZR / scoring.soft_cap)
    s_ZR, slope = scoring.soft_cap * tanh_ZR, 1 - tanh_ZR**2
  bias_ZS = _bias(here_2S, there_2Z, scoring.band)
  return s_ZR + jnp.tile(bias_ZS, (1, s_ZR.shape[1] // bias_ZS.shape[1])), slope


def _bias(here_2S, there_2Z, band):
  """0 where a key is seen, else UNSEEN; the heads of a group share it."""
  S, Z = here_2S.shape[1], there_2Z.shape[1]
  lanes = math.gcd(S, LANES)

  def down(row_1Z):
    # Registers are 128 wide: so much is turned, and the rest repeats it.
    return jnp.tile(jnp.broadcast_to(row_1Z, (lanes, Z)).T, (1, S // lanes))

  distance_ZS = here_2S[:1] - down(there_2Z[:1])
  seen_ZS = (here_2S[1:] == down(there_2Z[1:])) & (distance_ZS >= band.near)
  if band.far is not None:
    seen_ZS &= distance_ZS < band.far
  return jnp.where(seen_ZS, 0.0, UNSEEN)


def _dot(a, b, in_a=1, in_b=0):
  """a · b over the given axes, summed in fp32; fp32 factors are not rounded to bf16."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  dims = (((in_a,), (in_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, precision, preferred_element_type=jnp.float32)


# The walk over the grid.


def _walk(visits: Visits, most: int, sizes: Sizes, interpret: Interpret) -> Walk:
  """Firsts or ids, and counts, flat: scalar memory pads the last axis of a matrix to 128."""
  if not interpret and (sizes.query % LANES or sizes.key % LANES):
    raise ValueError(f'on TPU block sizes are multiples of {LANES}, {sizes} was given')
  match visits:
    case Range(first_BI, count_BI):
      scalars, per_block = (first_BI, count_BI), None
    case Listed(ids_BIT):
      scalars, per_block = (ids_BIT, (ids_BIT >= 0).sum(-1, dtype=jnp.int32)), ids_BIT.shape[2]
  size = sum(4 * x.size for x in scalars)
  if not interpret and size > SCALARS:
    raise ValueError(f'visits of {size} bytes, {SCALARS} fit: larger blocks or fewer rows a device')
  return Walk(tuple(x.ravel() for x in scalars), per_block, most, interpret)


def _call(
  visit: Callable,
  end: Callable,
  walk: Walk,
  here: list[jax.Array],
  there: list[jax.Array],
  made: list[tuple[tuple[int, ...], jnp.dtype]],
  kept: list[tuple[tuple[int, ...], float]],
  pairs: int,
  widths: int,
) -> list[jax.Array]:
  """One kernel: `visit` on every block with each that it visits, `end` when it has met the last.

  `here` is blocked like the results, `there` is what they visit; `made` and `kept` are shapes, and
  dtypes of the results or first values of fp32 sums. A visit scores `pairs`, with dot products of
  `widths` in all.
  """
  # As many steps as the busiest block takes: bounds known before are far above it for keys that lie
  # scattered, and each step that is skipped still costs its turn.
  grid = (*made[0][0][:3], jnp.maximum(walk.scalars[1].max(), 1))
  vary = frozenset().union(*(jax.typeof(x).mat.varying for x in (*walk.scalars, *here, *there)))
  axes = jax.sharding.ManualAxisType(varying=vary)
  visited = functools.partial(_visited, walk.per_block, grid[2])
  call = pl.pallas_call(
    functools.partial(
      _kernel, visit=visit, end=end, taken=len(here) + len(there), starts=[x for _, x in kept]
    ),
    out_shape=[jax.ShapeDtypeStruct(*x, manual_axis_type=axes) for x in made],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(walk.scalars),
      grid=grid,
      in_specs=[*(_spec(x.shape) for x in here), *(_spec(x.shape, visited) for x in there)],
      out_specs=[_spec(shape) for shape, _ in made],
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in kept],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary')
    ),
    cost_estimate=_cost(here, there, made, walk.most, pairs, widths),
    interpret=walk.interpret,
    name='block_attention' + visit.func.__name__.removesuffix('_visit'),
  )
  return call(*walk.scalars, *here, *there)


def _kernel(ids_ref, count_ref, *refs, visit, end, taken, starts):
  """One step of the grid: block i of row b meets the t-th that it visits."""
  made = len(refs) - taken - len(starts)
  inputs, outputs, kept = refs[:taken], refs[taken : taken + made], refs[taken + made :]
  block, t = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2), pl.program_id(3)

  @pl.when(t == 0)
  def _():
    for ref, start in zip(kept, starts):
      ref[...] = jnp.full_like(ref, start)

  @pl.when(t < count_ref[block])
  def _():
    visit(*inputs, *kept)

  @pl.when(t == pl.num_programs(3) - 1)
  def _():
    end(*outputs, *kept)


def _visited(per_block: int | None, blocks: int, b, i, t, ids_ref, count_ref):
  """The t-th block that block i of row b visits; past the last, the last again."""
  block = b * blocks + i
  t = jnp.maximum(jnp.minimum(t, count_ref[block] - 1), 0)
  if per_block is None:
    return ids_ref[block] + t
  return jnp.maximum(ids_ref[block * per_block + t], 0)


def _itself(b, i, t, *scalars):
  """The block of the grid."""
  return i


def _spec(shape: tuple[int, ...], block: Callable = _itself) -> pl.BlockSpec:
  """Blocks of arrays [B, K, I, …, …], and of tokens [B, I, 2, …] that all heads share."""
  heads = len(shape) - 4
  return pl.BlockSpec(
    (None,) * (len(shape) - 2) + tuple(shape[-2:]),
    lambda b, h, i, t, *scalars: (b, *(h,) * heads, block(b, i, t, *scalars), 0, 0),
  )


def _cost(here, there, made, most: int, pairs: int, widths: int) -> pl.CostEstimate:
  """An upper bound: how many blocks each visits is known only at run time."""
  size = lambda shape, dtype: math.prod(shape) * jnp.dtype(dtype).itemsize
  B, K, I = made[0][0][:3]
  visits, J = B * K * I * most, there[0].shape[2]
  read = sum(size(x.shape, x.dtype) for x in here)
  reread = sum(size(x.shape, x.dtype) for x in there) * I * most // J
  return pl.CostEstimate(
    flops=2 * visits * pairs * widths,
    transcendentals=visits * pairs,
    bytes_accessed=read + reread + sum(size(*x) for x in made),
  )


# Blocks as the kernels read them.


def _columns(x_BLNH: jax.Array, K: int, sizes: Sizes) -> jax.Array:
  """Queries across, the heads of a group side by side."""
  return rearrange(x_BLNH, 'B (I S) (K G) H -> B K I H (G S)', K=K, S=sizes.query)


def _uncolumns(x_BKIHR: jax.Array, sizes: Sizes) -> jax.Array:
  """And back."""
  return rearrange(x_BKIHR, 'B K I H (G S) -> B (I S) (K G) H', S=sizes.query)


def _tokens(tokens: Tokens, size: int) -> jax.Array:
  """[B, I, 2, S]: indices over segments."""
  blocks = [rearrange(x.astype(jnp.int32), 'B (I S) -> B I S', S=size) for x in tokens]
  return jnp.stack(blocks, 2)


def _query_tokens(queries: Tokens, sizes: Sizes) -> jax.Array:
  """Padding among queries gets a segment that no key has."""
  segments_BL = jnp.where(queries.segments_BM > 0, queries.segments_BM, -1)
  return _tokens(Tokens(queries.index_BM, segments_BL), sizes.query)


def _key_side(k_BMKH: jax.Array, v_BMKV: jax.Array, keys: Tokens, sizes: Sizes) -> list[jax.Array]:
  """Keys, values and where they stand, keys down."""
  rows = (rearrange(x, 'B (J Z) K H -> B K J Z H', Z=sizes.key) for x in (k_BMKH, v_BMKV))
  return [*rows, _tokens(keys, sizes.key)]


def _query_side(
  q_BLNH: jax.Array,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  queries: Tokens,
  K: int,
  sizes: Sizes,
) -> list[jax.Array]:
  """What the backward passes read of queries, queries across.

  lse and delta are 0 where nothing is seen, which keeps p and ds there at 0.
  """
  seen_BLN = lse_BLN > -jnp.inf
  zeroed = (jnp.where(seen_BLN, x, 0).astype(jnp.float32) for x in (lse_BLN, delta_BLN))
  arrays = (q_BLNH, do_BLNV, *(x[..., None] for x in zeroed))
  return [*(_columns(x, K, sizes) for x in arrays), _query_tokens(queries, sizes)]
