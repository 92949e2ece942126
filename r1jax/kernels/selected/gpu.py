"""Attention over listed pages in Mosaic GPU, for sm_90 (H100, H200).

    s = scale · q kᵀ,   p = exp(s − max s),   o = p v / Σ p,   lse = max s + log Σ p

A CUDA block serves one query and up to 64 heads of one kv head: those are the rows of wgmma. It
goes over the query's list in tiles of 64 places, which TMA copies by their ids into a ring of
stages. Values that lie in the keys are not copied again. gpu_tiles.py says how tiles come about,
and how two warpgroups share one where values are wider than 256 (MLA).

Cost: 2·(H + V) flops a listed place and head, in rows of 64: a group of 16 heads pays for four
times that. Keys and values are read once a query and block of heads; what is gathered costs more.
Widths are multiples of 64, V <= H: the output leaves through the shared memory of q.

On a GPU none of this has run yet; kernels/attention/gpu_tiles.py says what the interpreter proves.
It compiles for an H200 down to ptxas.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu import LOW
from r1jax.kernels.attention.gpu_tiles import (
  LOG2E,
  PRODUCER,
  ROWS,
  cost,
  launch,
  matmul,
  over,
  registers,
  release,
  ring,
)
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import over_chunks
from r1jax.kernels.selected.gpu_tiles import (
  COLUMNS,
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
  others,
  padded,
  parts_of,
  slots,
  split,
  stages_of,
  stored,
  unseen,
  whose,
)

REST = 128  # columns that keys may have beyond those of the values


def refuses(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  width: int,
  interpret: Any = False,
) -> str | None:
  """Why the kernel cannot serve these arrays; None if it can."""
  known = (jnp.bfloat16, jnp.float16) + ((jnp.float32,) if interpret else ())
  dtypes = sorted({str(x.dtype) for x in (q_BLNH, k_BMKH, v_BMKV) if x is not None})
  if len(dtypes) > 1 or q_BLNH.dtype not in known:
    return f'takes all bfloat16 or all float16, {", ".join(dtypes)} given'
  H = q_BLNH.shape[-1]
  if H % 64 or width % 64 or width > 2 * COLUMNS or not width <= H <= width + REST:
    return (
      f'takes widths in multiples of 64, values up to {2 * COLUMNS} and keys as wide or up to '
      f'{REST} wider; keys of {H} and values of {width} given'
    )
  return lacking(memory(H, width, v_BMKV is None, q_BLNH.dtype.itemsize), parts_of(width))


def memory(H: int, V: int, shared: bool, size: int) -> tuple[int, int]:
  """Bytes of shared memory that a block takes, and those of one stage."""
  parts = parts_of(V)
  mixing = (parts > 1) * ROWS * (size * TILE + 4 * parts)
  return ROWS * (size * H + 4) + mixing, TILE // parts * (size * (H + (not shared) * V) + 2 * 4)


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLJT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  size: int,
  scale: float,
  width: int,
  chunk: int,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); without v the value is the first `width` numbers of the key."""
  how = How(k_BMKH.shape[2], width, v_BMKV is None, scale, interpret)

  def one(_: None, piece: tuple) -> tuple[None, tuple]:
    q_BCNH, ids_BCJT, here = piece
    store = stored(k_BMKH, v_BMKV, ids_BCJT, keys, size)
    return None, attend(q_BCNH, store, here, how)

  if size % TILE == 0:
    return one(None, (q_BLNH, ids_BLJT, queries))[1]
  return over_chunks(one, None, (q_BLNH, ids_BLJT, queries), chunk)[1]


def attend(
  q_BLNH: jax.Array, store: Store, queries: Tokens, how: How
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN) over stored tiles."""
  (B, L, N, H), dtype, K, V = q_BLNH.shape, q_BLNH.dtype, how.heads, how.width
  group, parts = padded(N // K, 16), parts_of(V)
  job = job_of(q_BLNH, how, group, parts, memory(H, V, how.shared, dtype.itemsize))
  like, shares = functools.partial(plgpu.SMEM, dtype=dtype), parts if parts > 1 else 0
  run = launch(
    functools.partial(_forward, job=job),
    'selected_attention_forward',
    (
      jax.ShapeDtypeStruct((B * L, K * group, V), dtype),
      jax.ShapeDtypeStruct((B * L, K * group), jnp.float32),
    ),
    (
      tuple(like((1, ROWS, span.width)) for span in job.spans),
      slots(job, H, V, dtype),
      ((plgpu.SMEM((ROWS,), jnp.float32),) * shares, (like((ROWS, TILE // 2)),) * shares),
      plgpu.SMEM((ROWS,), jnp.float32),
      plgpu.Barrier(num_arrivals=len(job.spans)),
      ring(job.stages, 2 if how.shared else 3, parts),
      plgpu.Barrier(num_arrivals=parts, num_barriers=2),
    ),
    {'blocks': B * L * K * job.blocks},
    parts,
    cost(B * L * N * store.ids_XJT.shape[2] * TILE, H + V, (q_BLNH, *store[:2])),
    how.interpret,
  )
  o_XNV, lse_XN = run(by_query(q_BLNH, K, group), *store[:2], *beside(queries, store))
  return by_head(o_XNV, q_BLNH, K), by_head(lse_XN, q_BLNH, K)


def _forward(
  q, k, v, k_tokens, q_tokens, ids, count, o, lse,
  q_smems, slot_smems, mixing, lse_smem, ready, staging, met, *, job,
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
    plgpu.barrier_wait(ready)
    there = slot_smems, tile, none, (q_tokens[x, 0], q_tokens[x, 1])
    o_SV, lse_S = _attend(w, q_smems, there, mixing, staging, met, steps, job)
    q_smems[w].at[0][...] = o_SV.astype(o.dtype)
    if w == 0:
      lse_smem[...] = lse_S
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_smems[w].at[0, pl.ds(0, job.rows)], o.at[x, mine, job.spans[w].at])
    if w == 0:
      plgpu.copy_smem_to_gmem(lse_smem.at[pl.ds(0, job.rows)], lse.at[x, mine])
    plgpu.wait_smem_to_gmem(0)

  for w in range(job.parts):
    pl.when(wg == w)(functools.partial(compute, w))

  @pl.when(wg == job.parts)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    fill(k, v, k_tokens, tile, slot_smems, staging, x, kv, steps, job)


def _attend(w, q_smems, there, mixing, staging, met, steps, job):
  """Online softmax of 64 heads over the listed tiles: the columns of warpgroup w, and lse_S."""
  (*arrays, tokens), tile, none, token = there
  k_smem, v_smem, mine = arrays[0], arrays[-1], job.spans[w]
  tops, probabilities = mixing

  def visit(t, kept):
    o_SV, total_S, top_S = kept
    here = stages_of(t, job)
    plgpu.barrier_wait(staging.full.at[here[w]])
    id = tile(t)
    own = zip(held(q_smems, id), job.spans)
    pairs = [(q, k_smem.at[here[w], :, span.at]) for q, span in own]
    s_SZ = matmul(*pairs, transposed=True, interpret=job.interpret) * (job.scale * LOG2E)
    s_SZ += over(unseen(tokens.at[here[w]], token, id == none), s_SZ.shape, 1)
    both = exchange(s_SZ.max(1), w, tops, met.at[0], job.parts)
    higher_S = functools.reduce(jnp.maximum, [x[...] for x in both], top_S)
    kept_S = jnp.exp2(top_S - higher_S)
    p_SZ = jnp.exp2(s_SZ - over(higher_S, s_SZ.shape, 0))
    total_S = total_S * kept_S + p_SZ.sum(1)
    o_SV = o_SV * over(kept_S, o_SV.shape, 0)
    both = exchange(p_SZ.astype(v_smem.dtype), w, probabilities, met.at[1], job.parts)
    others(w, here, staging)
    pairs = [(p, v_smem.at[slot, :, mine.at]) for p, slot in zip(both, here)]
    o_SV = matmul(*pairs, onto=o_SV, interpret=job.interpret)
    for slot in here:
      release(staging, slot)
    return o_SV, total_S, higher_S

  start = (
    jnp.zeros((ROWS, mine.width), jnp.float32),
    jnp.zeros(ROWS, jnp.float32),
    jnp.full(ROWS, LOW, jnp.float32),
  )
  o_SV, total_S, top_S = lax.fori_loop(0, steps, visit, start)
  total_S = sum(x[...] for x in exchange(total_S, w, tops, met.at[0], job.parts))
  some_S = jnp.where(total_S > 0, total_S, 1.0)
  lse_S = jnp.where(total_S > 0, top_S / LOG2E + jnp.log(some_S), -jnp.inf)
  return o_SV * over(1 / some_S, o_SV.shape, 0), lse_S
