"""Gradients of attention over listed pages in Mosaic GPU, for sm_90.

    p = exp(s − lse),   ds = p (do vᵀ − delta)
    dq = scale · ds k,   dk = scale · dsᵀ q,   dv = pᵀ do

`d_query` goes over a query's tiles as the forward does. `d_key_value` serves one tile of one query
and goes over the heads of the group: its matrices stand transposed, [places, heads], and it gives
that query's share of dk and dv, which XLA adds up in fp32. TMA can add to memory on its way, but
jax's interpreter cannot; that would save two passes over what each query gives.

Where two warpgroups share the columns each makes half of ds (half of the places, or of the heads),
as in the forward. Queries go in chunks, as their places and gradients lie side by side.
Cost: 2·(2H + V) and 2·(2H + 2V) flops a listed place and head; B·L·K·Z·(H + V) numbers written and
added up, where v lies in k B·L·K·Z·H; chunk·K·Z of these at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu_tiles import (
  LOG2E,
  PRODUCER,
  ROWS,
  cost,
  launch,
  matmul,
  over,
  produce,
  registers,
  release,
  ring,
)
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import over_chunks
from r1jax.kernels.selected import xla
from r1jax.kernels.selected.gpu_tiles import (
  TILE,
  How,
  Store,
  beside,
  by_head,
  by_query,
  exchange,
  fetch_heads,
  fill,
  held,
  job_of,
  lacking,
  meet,
  others,
  padded,
  parts_of,
  place_of,
  slots,
  split,
  stages_of,
  stored,
  unseen,
  whose,
)


class Heads(NamedTuple):
  """How d_key_value goes over the heads of a group: `parts` warpgroups take `slot` each a step."""

  parts: int
  group: int  # heads with what is padded
  slot: int  # the contraction of wgmma: 16 or 32


def refuses(
  q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array | None, width: int
) -> str | None:
  """Why the kernels cannot serve what the forward can; None if they can."""
  (_, _, N, H), size, shared = q_BLNH.shape, q_BLNH.dtype.itemsize, v_BMKV is None
  heads = heads_of(N // k_BMKH.shape[2], H, width, shared)
  return lacking(query_memory(H, width, shared, size), parts_of(H)) or lacking(
    key_memory(H, width, shared, size, heads), heads.parts
  )


def heads_of(group: int, H: int, V: int, shared: bool) -> Heads:
  """Groups in whole steps; 32 heads at once where registers hold their scores beside the sums."""
  parts = parts_of(H if shared else H + V)
  group = padded(group, 16 * parts)
  return Heads(parts, group, 16 if parts > 1 or group % 32 else 32)


def query_memory(H: int, V: int, shared: bool, size: int) -> tuple[int, int]:
  """Bytes of shared memory that a block of d_query takes, and those of one stage."""
  parts = parts_of(H)
  fixed = ROWS * (size * (H + V) + 2 * 4) + (parts > 1) * ROWS * TILE * size
  return fixed, TILE // parts * (size * (H + (not shared) * V) + 2 * 4)


def key_memory(H: int, V: int, shared: bool, size: int, heads: Heads) -> tuple[int, int]:
  """Bytes of shared memory that a block of d_key_value takes, and those of one stage."""
  fixed = TILE * (size * (H + (not shared) * V) + 2 * 4) + heads.parts * TILE * heads.slot * size
  return fixed, heads.slot * (size * (H + V) + 2 * 4)


def backward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLJT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  size: int,
  scale: float,
  width: int,
  chunk: int,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """(dq, dk, dv) in the inputs' dtypes; dv is in dk where v is in k. delta is Σ do·o − dlse."""
  how = How(k_BMKH.shape[2], width, v_BMKV is None, scale, interpret)
  places = ids_BLJT.shape[3] * size

  def one(summed: tuple, piece: tuple) -> tuple[tuple, jax.Array]:
    q_BCNH, ids_BCJT, here, *rest = piece
    store = stored(k_BMKH, v_BMKV, ids_BCJT, keys, size)
    told = q_BCNH, store, here, *rest, how
    dq_BCNH, more = d_query(*told), d_key_value(*told)
    back = lambda y: rearrange(y, '(B C) K Z H -> B C K Z H', B=q_BCNH.shape[0])[:, :, :, :places]
    summed = tuple(xla.scatter_add(x, ids_BCJT, size, back(y)) for x, y in zip(summed, more))
    return summed, dq_BCNH

  kept = [x for x in (k_BMKH, v_BMKV) if x is not None]
  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in kept)
  pieces = (q_BLNH, ids_BLJT, queries, do_BLNV.astype(q_BLNH.dtype), lse_BLN, delta_BLN)
  summed, dq_BLNH = over_chunks(one, zeros, pieces, chunk)
  dk_BMKH, dv_BMKV = (*(d.astype(x.dtype) for d, x in zip(summed, kept)), None)[:2]
  return dq_BLNH, dk_BMKH, dv_BMKV


def statistics(lse_BLN: jax.Array, delta_BLN: jax.Array, K: int, group: int) -> jax.Array:
  """[X, K, 2, whole blocks]: lse in powers of two and delta; what sees nothing has +inf and 0."""
  delta_BLN = jnp.where(lse_BLN == -jnp.inf, 0, delta_BLN)  # there dlse may be anything
  lse_BLN = jnp.where(lse_BLN == -jnp.inf, jnp.inf, lse_BLN * LOG2E)
  both = [rearrange(by_query(x, K, group), 'X (K G) -> X K G', K=K) for x in (lse_BLN, delta_BLN)]
  both_XK2G = jnp.stack(both, 2).astype(jnp.float32)
  return jnp.pad(both_XK2G, ((0, 0),) * 3 + ((0, -group % ROWS),))


def d_query(
  q_BLNH: jax.Array,
  store: Store,
  queries: Tokens,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  how: How,
) -> jax.Array:
  """dq_BLNH over stored tiles."""
  (B, L, N, H), dtype, K, V = q_BLNH.shape, q_BLNH.dtype, how.heads, how.width
  group, parts = padded(N // K, 16), parts_of(H)
  job = job_of(q_BLNH, how, group, parts, query_memory(H, V, how.shared, dtype.itemsize))
  like = functools.partial(plgpu.SMEM, dtype=dtype)
  of = lambda cut: tuple(like((1, ROWS, span.width)) for span in cut)
  run = launch(
    functools.partial(_d_query, job=job),
    'selected_attention_d_query',
    jax.ShapeDtypeStruct((B * L, K * group, H), dtype),
    (
      of(job.spans),
      of(job.values),
      plgpu.SMEM((2, ROWS), jnp.float32),
      slots(job, H, V, dtype),
      (like((ROWS, TILE // 2)),) * (parts if parts > 1 else 0),
      plgpu.Barrier(num_arrivals=len(job.spans) + len(job.values) + 1),
      ring(job.stages, 2 if how.shared else 3, parts),
      plgpu.Barrier(num_arrivals=parts, num_barriers=2),
    ),
    {'blocks': B * L * K * job.blocks},
    parts,
    cost(B * L * N * store.ids_XJT.shape[2] * TILE, 2 * H + V, (q_BLNH, *store[:2], do_BLNV)),
    how.interpret,
  )
  stats = statistics(lse_BLN, delta_BLN, K, group)
  heads = by_query(q_BLNH, K, group), by_query(do_BLNV, K, group), stats
  return by_head(run(*heads, *store[:2], *beside(queries, store)), q_BLNH, K)


def _d_query(
  q, do, stats, k, v, k_tokens, q_tokens, ids, count, dq,
  q_smems, do_smems, stats_smem, slot_smems, mixing, ready, staging, met, *, job,
):  # fmt: skip
  """Up to 64 heads of one query."""
  x, kv, n = whose(job)
  wg, (_, lists) = lax.axis_index('warpgroup'), split(kv, ids.shape[1])
  steps, mine = count[x, lists], pl.ds(n, job.rows)
  tile, none = lambda t: ids[x, lists, t], k.shape[1] // TILE

  def compute(w):
    registers(job.parts)
    if w == 0:
      fetch_heads(q.at[x, mine], q_smems, job.spans, job.rows, ready)
      fetch_heads(do.at[x, mine], do_smems, job.values, job.rows, ready)
      block = pl.ds(n - kv * job.group, ROWS)
      plgpu.copy_gmem_to_smem(stats.at[x, kv, :, block], stats_smem, ready)
    plgpu.barrier_wait(ready)
    here = q_smems, do_smems, stats_smem[0], stats_smem[1]
    there = slot_smems, tile, none, (q_tokens[x, 0], q_tokens[x, 1])
    sums = _visits(w, here, there, mixing, staging, met, steps, job)
    for i, _, made in sums:
      q_smems[i].at[0][...] = (made * job.scale).astype(dq.dtype)
    plgpu.commit_smem()
    for i, span, _ in sums:
      plgpu.copy_smem_to_gmem(q_smems[i].at[0, pl.ds(0, job.rows)], dq.at[x, mine, span.at])
    plgpu.wait_smem_to_gmem(0)

  for w in range(job.parts):
    pl.when(wg == w)(functools.partial(compute, w))

  @pl.when(wg == job.parts)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    fill(k, v, k_tokens, tile, slot_smems, staging, x, kv, steps, job)


def _visits(w, here, there, mixing, staging, met, steps, job):
  """(index, span, sums of ds k) for each span of columns that warpgroup w owns."""
  q_smems, do_smems, lse_S, delta_S = here
  (*arrays, tokens), tile, none, token = there
  k_smem, v_smem = arrays[0], arrays[-1]
  own = [(i, span) for i, span in enumerate(job.spans) if span.owner == w]
  product = functools.partial(matmul, transposed=True, interpret=job.interpret)

  def visit(t, sums):
    parts = stages_of(t, job)
    slot, id = parts[w], tile(t)
    plgpu.barrier_wait(staging.full.at[slot])
    mine = zip(held(q_smems, id), job.spans)
    s_SZ = product(*[(x, k_smem.at[slot, :, c.at]) for x, c in mine])
    s_SZ = s_SZ * (job.scale * LOG2E)
    s_SZ += over(unseen(tokens.at[slot], token, id == none), s_SZ.shape, 1)
    p_SZ = jnp.exp2(s_SZ - over(lse_S, s_SZ.shape, 0))
    mine = zip(held(do_smems, id), job.values)
    dp_SZ = product(*[(x, v_smem.at[slot, :, c.at]) for x, c in mine])
    ds_SZ = (p_SZ * (dp_SZ - over(delta_S, s_SZ.shape, 0))).astype(k_smem.dtype)
    meet(met.at[0], job.parts)  # the other one has read what it was given before
    both = exchange(ds_SZ, w, mixing, met.at[1], job.parts)
    others(w, parts, staging)
    sums = tuple(
      matmul(
        *[(ds, k_smem.at[at, :, span.at]) for ds, at in zip(both, parts)],
        onto=made,
        interpret=job.interpret,
      )
      for made, (_, span) in zip(sums, own)
    )
    for at in parts:
      release(staging, at)
    return sums

  start = tuple(jnp.zeros((ROWS, span.width), jnp.float32) for _, span in own)
  sums = lax.fori_loop(0, steps, visit, start)
  return [(i, span, made) for (i, span), made in zip(own, sums)]


def d_key_value(
  q_BLNH: jax.Array,
  store: Store,
  queries: Tokens,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  how: How,
) -> tuple[jax.Array, ...]:
  """dk_XKZH and dv_XKZV of each query alone, Z its places; where v is in k, dk_XKZH for both."""
  (B, L, N, H), dtype, K, V = q_BLNH.shape, q_BLNH.dtype, how.heads, how.width
  parts, group, slot = heads = heads_of(N // K, H, V, how.shared)
  tiles, bytes_ = store.ids_XJT.shape[2], key_memory(H, V, how.shared, dtype.itemsize, heads)
  job = job_of(q_BLNH, how, group, parts, bytes_)
  like = functools.partial(plgpu.SMEM, dtype=dtype)
  cuts = (job.spans,) if how.shared else (job.spans, job.values)
  run = launch(
    functools.partial(_d_key_value, job=job, tiles=tiles, heads=slot),
    'selected_attention_d_key_value',
    tuple(
      jax.ShapeDtypeStruct((B * L, K, tiles * TILE, width), dtype) for width in (H, V)[: len(cuts)]
    ),
    (
      tuple(tuple(like((1, TILE, span.width)) for span in cut) for cut in cuts),
      plgpu.SMEM((2, TILE), jnp.int32),
      (like((job.stages, slot, H)), like((job.stages, slot, V))),
      plgpu.SMEM((job.stages, 2, slot), jnp.float32),
      (like((TILE, slot)),) * parts,
      plgpu.Barrier(num_arrivals=sum(len(cut) for cut in cuts) + 1),
      ring(job.stages, 3, parts),
      plgpu.Barrier(num_arrivals=parts, num_barriers=2),
    ),
    {'blocks': B * L * K * tiles},
    parts,
    cost(B * L * N * tiles * TILE, 2 * H + 2 * V, (q_BLNH, *store[:2], do_BLNV)),
    how.interpret,
  )
  stats = statistics(lse_BLN, delta_BLN, K, group)
  heads = by_query(q_BLNH, K, group), by_query(do_BLNV, K, group), stats
  return run(*heads, *store[:2], *beside(queries, store)[:-1])


def _d_key_value(
  q, do, stats, k, v, k_tokens, q_tokens, ids, dk, *rest, job, tiles, heads
):  # fmt: skip
  """One tile that one query lists for one kv head."""
  dv, (k_smems, tokens_smem, q_smems, stats_smem, mixing, ready, staging, met) = (
    (None, rest) if job.shared else (rest[0], rest[1:])
  )
  i, t = split(lax.axis_index('blocks'), tiles)
  (x, kv), wg = split(i, job.heads), lax.axis_index('warpgroup')
  lists, none = split(kv, ids.shape[1])[1], k.shape[1] // TILE
  tile = lambda: ids[x, lists, t]
  steps = jnp.where(tile() == none, 0, job.group // (heads * job.parts))

  def compute(w):
    registers(job.parts)
    if w == 0:
      (b, _), (_, head) = split(x, job.length), split(kv, k.shape[2])
      at = pl.ds(place_of(tile(), k), TILE)
      for source, to, cut in zip((k, v), k_smems, (job.spans, job.values)):
        fetch_heads(source.at[b, at, head], to, cut, TILE, ready)
      plgpu.copy_gmem_to_smem(k_tokens.at[b, :, at], tokens_smem, ready)
    plgpu.barrier_wait(ready)
    bias_Z = unseen(tokens_smem, (q_tokens[x, 0], q_tokens[x, 1]), tile() == none)
    there = q_smems, stats_smem, tile
    sums = _heads(w, k_smems, bias_Z, there, mixing, staging, met, steps, job)
    for (which, i, _), made in sums:
      k_smems[which][i].at[0][...] = made.astype(dk.dtype)
    plgpu.commit_smem()
    for (which, i, span), _ in sums:
      to = (dk, dv)[which].at[x, kv, pl.ds(t * TILE, TILE), span.at]
      plgpu.copy_smem_to_gmem(k_smems[which][i].at[0], to)
    plgpu.wait_smem_to_gmem(0)

  for w in range(job.parts):
    pl.when(wg == w)(functools.partial(compute, w))

  @pl.when(wg == job.parts)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')

    def fetch(t, slot, full):
      at = pl.ds(kv * job.group + t * heads, heads)
      sources = q.at[x, at], do.at[x, at], stats.at[x, kv, :, pl.ds(t * heads, heads)]
      for source, to in zip(sources, (*q_smems, stats_smem)):
        plgpu.copy_gmem_to_smem(source, to.at[slot], full)

    produce(steps * job.parts, job.stages, [(staging, fetch)])


def _heads(w, k_smems, bias_Z, there, mixing, staging, met, steps, job):
  """((0 dk or 1 dv, index, span), sums) for each span of columns that warpgroup w owns."""
  (q_smem, do_smem), stats_smem, tile = there
  own = [
    (which, i, span)
    for which, cut in enumerate((job.spans, job.values)[: len(k_smems)])
    for i, span in enumerate(cut)
    if span.owner == w
  ]
  product = functools.partial(matmul, transposed=True, interpret=job.interpret)
  add = functools.partial(matmul, interpret=job.interpret)

  def visit(t, sums):
    parts = stages_of(t, job)
    slot = parts[w]
    plgpu.barrier_wait(staging.full.at[slot])
    id = tile()  # read again in each step: the compiler shall not know it
    mine = zip(held(k_smems[0], id), job.spans)
    s_ZS = product(*[(x, q_smem.at[slot, :, c.at]) for x, c in mine])
    s_ZS = s_ZS * (job.scale * LOG2E)
    s_ZS += over(bias_Z, s_ZS.shape, 0)
    p_ZS = jnp.exp2(s_ZS - over(stats_smem.at[slot][0], s_ZS.shape, 1))
    mine = zip(held(k_smems[-1], id), job.values)
    dp_ZS = product(*[(x, do_smem.at[slot, :, c.at]) for x, c in mine])
    # Scaled here: what dv adds to columns that are values, too, is not.
    ds_ZS = job.scale * p_ZS * (dp_ZS - over(stats_smem.at[slot][1], s_ZS.shape, 1))
    others(w, parts, staging)

    def added(sums, made, smem, wanted):
      meet(met.at[0], job.parts)  # the other one has read what it was given before
      both = exchange(made.astype(do_smem.dtype), w, mixing, met.at[1], job.parts)
      pairs = lambda span: [(x, smem.at[at, :, span.at]) for x, at in zip(both, parts)]
      return tuple(
        add(*pairs(entry[2]), onto=x) if wanted(entry) else x for entry, x in zip(own, sums)
      )

    sums = added(sums, p_ZS, do_smem, of_values)
    sums = added(sums, ds_ZS, q_smem, lambda entry: entry[0] == 0)
    for at in parts:
      release(staging, at)
    return sums

  of_values = lambda entry: entry[0] == len(k_smems) - 1 and entry[2].of_value
  start = tuple(jnp.zeros((TILE, span.width), jnp.float32) for _, _, span in own)
  return list(zip(own, lax.fori_loop(0, steps, visit, start)))
