"""Gradients of block-sparse attention in Mosaic GPU, for sm_90.

    p = exp(s − lse),   ds = p (do vᵀ − delta) · slope of the soft cap
    dq = scale · ds k,   dk = scale · dsᵀ q,   dv = pᵀ do

`d_query` goes over the key blocks that a block of queries visits, as the forward pass does.
`d_key_value` goes over the query blocks that visit a block of keys, for all heads of the kv head
one after another: sums stay in registers, no atomic adds and no dk for every query head. Its
matrices stand transposed, [keys, queries], so that pᵀ and dsᵀ are register operands of wgmma.

Rows that see nothing have lse = −inf, which enters as +inf: p is 0 there.
Cost: 2·(2H + V) and 2·(2H + 2V) flops a visited pair and head.
"""

import functools
from typing import Any

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
  Job,
  addresses,
  beside,
  capped,
  check,
  cost,
  launch,
  masked,
  matmul,
  over,
  produce,
  registers,
  release,
  ring,
  staged,
  visiting,
)
from r1jax.kernels.attention.lists import Band, Sizes, Tokens, Visits


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
  soft_cap: float | None,
  interpret: Any = False,
) -> jax.Array:
  """dq_BLNH; `visits` are the key blocks of each query block, delta is Σ do·o − dlse."""
  (B, L, N, H), (K, V) = q_BLNH.shape, v_BMKV.shape[2:]
  check(q_BLNH, k_BMKH, v_BMKV, sizes, sizes.query, interpret)
  consumers, size = sizes.query // ROWS, q_BLNH.dtype.itemsize
  fixed = sizes.query * (size * (H + V) + 5 * 4)
  stages = staged(fixed, sizes.key * (size * (H + V) + 3 * 4), most, sizes)
  job = Job(sizes, band, scale, soft_cap, N // K, stages, bool(interpret))
  return launch(
    functools.partial(_d_query, job=job),
    'block_attention_d_query',
    jax.ShapeDtypeStruct(q_BLNH.shape, q_BLNH.dtype),
    (
      buffers(consumers, ROWS, (H, V), q_BLNH.dtype),
      plgpu.SMEM((consumers, 2, ROWS), jnp.float32),
      buffers(stages, sizes.key, (H, V), q_BLNH.dtype),
      plgpu.Barrier(num_arrivals=4, num_barriers=consumers),
      ring(stages, 3, consumers),
    ),
    {'heads': N, 'blocks': L // sizes.query, 'rows': B},
    consumers,
    cost(B * N * L * most * sizes.key, 2 * H + V, (q_BLNH, k_BMKH, v_BMKV, do_BLNV)),
    interpret,
  )(
    q_BLNH,
    k_BMKH,
    v_BMKV,
    do_BLNV.astype(q_BLNH.dtype),
    statistics(lse_BLN, delta_BLN, ROWS),
    beside(queries, ROWS, -2),
    beside(keys, sizes.key, -1),
    *addresses(visits),
  )


def _d_query(
  q, k, v, do, stats, q_tokens, k_tokens, where, count, dq,
  q_smems, stats_smem, k_smems, ready, staging, *, job,
):  # fmt: skip
  """One head of one block of queries."""
  b, n, wg = (lax.axis_index(name) for name in ('rows', 'heads', 'warpgroup'))
  i = count.shape[1] - 1 - lax.axis_index('blocks')
  steps, consumers = count[b, i], job.sizes.query // ROWS

  @pl.when(wg < consumers)
  def _compute():
    registers(consumers)
    part = i * consumers + wg
    mine, mine_stats = (b, pl.ds(part * ROWS, ROWS), n), stats_smem.at[wg]
    here = tuple(x.at[wg] for x in q_smems)
    sources = (q.at[mine], do.at[mine], q_tokens.at[b, part], stats.at[b, n, part])
    for source, to in zip(sources, (*here, mine_stats)):
      plgpu.copy_gmem_to_smem(source, to, ready.at[wg])
    plgpu.barrier_wait(ready.at[wg])
    lse_S, delta_S = mine_stats[0], mine_stats[1]

    def visit(t, dq_SH):
      slot = lax.rem(t, jnp.int32(job.stages))
      plgpu.barrier_wait(staging.full.at[slot])
      there = tuple(x.at[slot] for x in k_smems)
      _, ds_SZ = gradients(here, there, 0, lse_S, delta_S, job)
      dq_SH = matmul((ds_SZ, there[0]), onto=dq_SH, interpret=job.interpret)
      release(staging, slot)
      return dq_SH

    dq_SH = lax.fori_loop(0, steps, visit, jnp.zeros(here[0].shape, jnp.float32))
    here[0][...] = (dq_SH * job.scale).astype(dq.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(here[0], dq.at[mine])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == consumers)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    kv, block = lax.div(n, jnp.int32(job.group)), visiting(where, b, i)

    def fetch(t, slot, full):
      j = block(t)
      at = (b, pl.ds(j * job.sizes.key, job.sizes.key), kv)
      for source, to in zip((k.at[at], v.at[at], k_tokens.at[b, j]), k_smems):
        plgpu.copy_gmem_to_smem(source, to.at[slot], full)

    produce(steps, job.stages, [(staging, fetch)])


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
  soft_cap: float | None,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(dk_BMKH, dv_BMKV); `visits` are the query blocks of each key block."""
  (B, _, N, H), (M, K, V) = q_BLNH.shape, v_BMKV.shape[1:]
  check(q_BLNH, k_BMKH, v_BMKV, sizes, sizes.key, interpret)
  consumers, size = sizes.key // ROWS, q_BLNH.dtype.itemsize
  fixed = sizes.key * (size * (H + V) + 3 * 4)
  stage = sizes.query * (size * (H + V) + 5 * 4)
  stages = staged(fixed, stage, most * (N // K), sizes)
  job = Job(sizes, band, scale, soft_cap, N // K, stages, bool(interpret))
  return launch(
    functools.partial(_d_key_value, job=job),
    'block_attention_d_key_value',
    tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BMKH, v_BMKV)),
    (
      buffers(consumers, ROWS, (H, V), q_BLNH.dtype),
      buffers(stages, sizes.query, (H, V), q_BLNH.dtype),
      plgpu.SMEM((stages, 2, sizes.query), jnp.float32),
      plgpu.Barrier(num_arrivals=3, num_barriers=consumers),
      ring(stages, 4, consumers),
    ),
    {'heads': K, 'blocks': M // sizes.key, 'rows': B},
    consumers,
    cost(B * N * M * most * sizes.query, 2 * H + 2 * V, (q_BLNH, k_BMKH, v_BMKV, do_BLNV)),
    interpret,
  )(
    q_BLNH,
    k_BMKH,
    v_BMKV,
    do_BLNV.astype(q_BLNH.dtype),
    statistics(lse_BLN, delta_BLN, sizes.query),
    beside(queries, sizes.query, -2),
    beside(keys, ROWS, -1),
    *addresses(visits),
  )


def _d_key_value(
  q, k, v, do, stats, q_tokens, k_tokens, where, count, dk, dv,
  k_smems, q_smems, stats_smem, ready, staging, *, job,
):  # fmt: skip
  """One kv head of one block of keys; the first blocks first: most queries may visit them."""
  b, kv, j, wg = (lax.axis_index(name) for name in ('rows', 'heads', 'blocks', 'warpgroup'))
  steps, consumers = count[b, j] * job.group, job.sizes.key // ROWS

  @pl.when(wg < consumers)
  def _compute():
    registers(consumers)
    part = j * consumers + wg
    mine = (b, pl.ds(part * ROWS, ROWS), kv)
    here = tuple(x.at[wg] for x in k_smems)
    for source, to in zip((k.at[mine], v.at[mine], k_tokens.at[b, part]), here):
      plgpu.copy_gmem_to_smem(source, to, ready.at[wg])
    plgpu.barrier_wait(ready.at[wg])

    def visit(t, sums):
      dk_ZH, dv_ZV = sums
      slot = lax.rem(t, jnp.int32(job.stages))
      plgpu.barrier_wait(staging.full.at[slot])
      there, there_stats = tuple(x.at[slot] for x in q_smems), stats_smem.at[slot]
      p_ZS, ds_ZS = gradients(here, there, 1, there_stats[0], there_stats[1], job)
      dv_ZV = matmul((p_ZS, there[1]), onto=dv_ZV, interpret=job.interpret)
      dk_ZH = matmul((ds_ZS, there[0]), onto=dk_ZH, interpret=job.interpret)
      release(staging, slot)
      return dk_ZH, dv_ZV

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in here[:2])
    dk_ZH, dv_ZV = lax.fori_loop(0, steps, visit, start)
    here[0][...] = (dk_ZH * job.scale).astype(dk.dtype)
    here[1][...] = dv_ZV.astype(dv.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(here[0], dk.at[mine])
    plgpu.copy_smem_to_gmem(here[1], dv.at[mine])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == consumers)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    block = visiting(where, b, j)

    def fetch(t, slot, full):
      i, n = block(lax.div(t, jnp.int32(job.group))), lax.rem(t, jnp.int32(job.group))
      n += kv * job.group
      at = (b, pl.ds(i * job.sizes.query, job.sizes.query), n)
      sources = (q.at[at], do.at[at], q_tokens.at[b, i], stats.at[b, n, i])
      for source, to in zip(sources, (*q_smems, stats_smem)):
        plgpu.copy_gmem_to_smem(source, to.at[slot], full)

    produce(steps, job.stages, [(staging, fetch)])


def gradients(
  here: tuple, there: tuple, axis: int, lse: jax.Array, delta: jax.Array, job: Job
) -> tuple[jax.Array, jax.Array]:
  """(p, ds) [here, there] of two blocks (q, do, tokens) and (k, v, tokens), queries along `axis`.

  Both are in the operands' dtype; ds lacks the factor `scale`.
  """
  product = functools.partial(matmul, transposed=True, interpret=job.interpret)
  s, slope = capped(product((here[0], there[0])), job)
  queries, keys = (here, there) if axis == 0 else (there, here)
  s = masked(s, queries[2], keys[2], axis, job.band)
  p = jnp.exp2(s - over(lse, s.shape, axis))
  ds = p * (product((here[1], there[1])) - over(delta, s.shape, axis))
  ds = ds if slope is None else ds * slope
  return p.astype(here[0].dtype), ds.astype(here[0].dtype)


def buffers(count: int, rows: int, widths: tuple[int, int], dtype: Any) -> tuple:
  """Shared memory for so many blocks: q or k, do or v, and their tokens."""
  arrays = tuple(plgpu.SMEM((count, rows, width), dtype) for width in widths)
  return (*arrays, plgpu.SMEM((count, 3, rows), jnp.int32))


def statistics(lse_BLN: jax.Array, delta_BLN: jax.Array, size: int) -> jax.Array:
  """[B, N, I, 2, size]: lse in powers of two and delta; what sees nothing has +inf."""
  lse_BLN = jnp.where(lse_BLN == -jnp.inf, jnp.inf, lse_BLN * LOG2E)
  both = jnp.stack((lse_BLN, delta_BLN)).astype(jnp.float32)
  return rearrange(both, 'two B (I S) N -> B N I two S', S=size)
