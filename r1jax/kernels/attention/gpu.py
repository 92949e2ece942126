"""Block-sparse attention forward in Mosaic GPU, for sm_90 (H100, H200).

    s = cap(scale · q kᵀ),   p = exp(s − max s),   o = p v / Σ p,   lse = max s + log Σ p

A CUDA block serves one head of one block of queries, 64 rows a compute warpgroup. One more
warpgroup (`produce`) reads which key blocks are visited and has TMA copy just those into a ring of
stages in shared memory. Scores, softmax (in powers of two) and sums stay in fp32 registers; p goes
from there into the second wgmma. With each block come its tokens (`beside`), with marks that tell
when all of two blocks see each other, so that the mask is skipped.

Cost: 2·(H + V) flops a visited pair and head; key blocks are read once a head and block of queries.
Widths are multiples of 64 and V <= H: the output leaves through the shared memory of the first V
columns of q, the rest of which (MLA's rotary part) has its own.

On a GPU none of this has run yet; gpu_tiles.py says what the interpreter proves.
"""

import functools
import itertools
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

# (forward, d_query, d_key_value): fit into shared memory up to widths 192 and 128. Not measured.
SIZES = (Sizes(128, 128), Sizes(128, 64), Sizes(64, 128))
LOW = -1e30  # below every score, but finite: LOW − LOW is 0


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
  soft_cap: float | None,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); lengths are multiples of the blocks. `interpret`: InterpretGPUParams."""
  (B, L, N, H), (K, V) = q_BLNH.shape, v_BMKV.shape[2:]
  check(q_BLNH, k_BMKH, v_BMKV, sizes, sizes.query, interpret)
  consumers, size = sizes.query // ROWS, q_BLNH.dtype.itemsize
  fixed = sizes.query * (size * H + 4 * 4)
  stages = staged(fixed, sizes.key * (size * (H + V) + 3 * 4), most, sizes)
  job = Job(sizes, band, scale, soft_cap, N // K, stages, bool(interpret))
  memory = functools.partial(plgpu.SMEM, dtype=q_BLNH.dtype)
  whole = functools.partial(plgpu.SMEM, dtype=jnp.int32)
  run = launch(
    functools.partial(_forward, job=job),
    'block_attention_forward',
    (
      jax.ShapeDtypeStruct((B, L, N, V), v_BMKV.dtype),
      jax.ShapeDtypeStruct((B, N, L), jnp.float32),
    ),
    (
      tuple(memory((consumers, ROWS, width)) for width in (V, H - V) if width),
      whole((consumers, 3, ROWS)),
      plgpu.SMEM((consumers, ROWS), jnp.float32),
      (memory((stages, sizes.key, H)), whole((stages, 3, sizes.key))),
      memory((stages, sizes.key, V)),
      plgpu.Barrier(num_arrivals=2 + (H > V), num_barriers=consumers),
      ring(stages, 2, consumers),
      ring(stages, 1, consumers),
    ),
    {'heads': N, 'blocks': L // sizes.query, 'rows': B},
    consumers,
    cost(B * N * L * most * sizes.key, H + V, (q_BLNH, k_BMKH, v_BMKV)),
    interpret,
  )
  o_BLNV, lse_BNL = run(
    q_BLNH,
    k_BMKH,
    v_BMKV,
    beside(queries, ROWS, -2),
    beside(keys, sizes.key, -1),
    *addresses(visits),
  )
  return o_BLNV, rearrange(lse_BNL, 'B N L -> B L N')


def _forward(
  q, k, v, q_tokens, k_tokens, where, count, o, lse,
  q_smems, here_smem, lse_smem, k_smems, v_smem, ready, k_ring, v_ring, *, job,
):  # fmt: skip
  """One head of one block of queries; the last blocks first, as they may visit the most."""
  b, n, wg = (lax.axis_index(name) for name in ('rows', 'heads', 'warpgroup'))
  i = count.shape[1] - 1 - lax.axis_index('blocks')
  steps, consumers = count[b, i], job.sizes.query // ROWS

  @pl.when(wg < consumers)
  def _compute():
    registers(consumers)
    part = i * consumers + wg
    mine, q_parts = (b, pl.ds(part * ROWS, ROWS), n), [x.at[wg] for x in q_smems]
    for q_part, columns in zip(q_parts, halves(q_smems)):
      plgpu.copy_gmem_to_smem(q.at[*mine, columns], q_part, ready.at[wg])
    plgpu.copy_gmem_to_smem(q_tokens.at[b, part], here_smem.at[wg], ready.at[wg])
    plgpu.barrier_wait(ready.at[wg])
    there = (*k_smems, v_smem)
    o_SV, lse_S = _attend(q_parts, here_smem.at[wg], there, k_ring, v_ring, steps, job)
    q_parts[0][...] = o_SV.astype(o.dtype)
    lse_smem.at[wg][...] = lse_S
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_parts[0], o.at[mine])
    plgpu.copy_smem_to_gmem(lse_smem.at[wg], lse.at[b, n, pl.ds(part * ROWS, ROWS)])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == consumers)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    kv, block = lax.div(n, jnp.int32(job.group)), visiting(where, b, i)

    def keys(t, slot, full):
      j = block(t)
      plgpu.copy_gmem_to_smem(k_tokens.at[b, j], k_smems[1].at[slot], full)
      at = (b, pl.ds(j * job.sizes.key, job.sizes.key), kv)
      plgpu.copy_gmem_to_smem(k.at[at], k_smems[0].at[slot], full)

    def values(t, slot, full):
      at = (b, pl.ds(block(t) * job.sizes.key, job.sizes.key), kv)
      plgpu.copy_gmem_to_smem(v.at[at], v_smem.at[slot], full)

    produce(steps, job.stages, [(k_ring, keys), (v_ring, values)])


def halves(q_smems: list) -> list:
  """Columns of q that the buffers hold: as many as v has, then the rest."""
  ends = [0]
  for x in q_smems:
    ends += [ends[-1] + x.shape[-1]]
  return [pl.ds(a, b - a) for a, b in itertools.pairwise(ends)]


def _attend(q_parts, tokens, there, k_ring, v_ring, steps, job):
  """Online softmax of 64 queries over the visited blocks: o_SV and lse_S."""
  k_smem, k_tokens, v_smem = there

  def visit(t, kept):
    o_SV, total_S, top_S = kept
    slot = lax.rem(t, jnp.int32(job.stages))
    plgpu.barrier_wait(k_ring.full.at[slot])
    pairs = [(x, k_smem.at[slot, :, columns]) for x, columns in zip(q_parts, halves(q_parts))]
    s_SZ, _ = capped(matmul(*pairs, transposed=True, interpret=job.interpret), job)
    s_SZ = masked(s_SZ, tokens, k_tokens.at[slot], 0, job.band)
    release(k_ring, slot)
    higher_S = jnp.maximum(top_S, s_SZ.max(1))
    kept_S = jnp.exp2(top_S - higher_S)
    p_SZ = jnp.exp2(s_SZ - over(higher_S, s_SZ.shape, 0))
    total_S = total_S * kept_S + p_SZ.sum(1)
    o_SV = o_SV * over(kept_S, o_SV.shape, 0)
    plgpu.barrier_wait(v_ring.full.at[slot])
    pair = (p_SZ.astype(v_smem.dtype), v_smem.at[slot])
    o_SV = matmul(pair, onto=o_SV, interpret=job.interpret)
    plgpu.barrier_arrive(v_ring.free.at[slot])
    return o_SV, total_S, higher_S

  zeros = jnp.zeros((ROWS, v_smem.shape[-1]), jnp.float32)
  start = (zeros, jnp.zeros(ROWS, jnp.float32), jnp.full(ROWS, LOW, jnp.float32))
  o_SV, total_S, top_S = lax.fori_loop(0, steps, visit, start)
  seen_S = total_S > 0
  some_S = jnp.where(seen_S, total_S, 1.0)
  lse_S = jnp.where(seen_S, top_S / LOG2E + jnp.log(some_S), -jnp.inf)
  return o_SV * over(1 / some_S, o_SV.shape, 0), lse_S
