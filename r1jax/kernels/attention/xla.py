"""Block-sparse attention in XLA: one block of queries after another, over the blocks it visits.

    m, l, o ← online softmax over the visited key blocks;   o / l,   lse = m + log l

Backward from (q, k, v, lse, delta = Σ do·o − dlse): p = exp(s − lse), ds = p (do vᵀ − delta),
dq += ds k, dk += dsᵀ q, dv += pᵀ do, all in one pass over the same pairs (the transposed lists are
for kernels whose blocks run side by side). Loops end at each block's own count.

Cost: 2·(H+V) flops a pair, head and pass, 2.5 times that backward; memory O(L + M): never more
scores than those of two blocks. Blocks run one after the other, so a block should fill the device.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.lists import Band, Listed, Pass, Range, Tokens
from r1jax.kernels.attention.reference import sees
from r1jax.kernels.chunks import vary_like
from r1jax.kernels.platform import sums


class Block(NamedTuple):
  """Queries of one block: their tokens, and by kv head what was handed in, [K, G, S, …]."""

  tokens: Tokens
  arrays: tuple[jax.Array, ...]


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
  band: Band,
  way: Pass,
  scale: float,
  soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); lengths are multiples of the block sizes."""
  told = q_BLNH, k_BMKH, v_BMKV, queries, keys, way
  K, V, dtype = k_BMKH.shape[2], v_BMKV.shape[-1], sums(q_BLNH)
  score = functools.partial(scores, band=band, scale=scale, soft_cap=soft_cap)

  def one(b: jax.Array, i: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
    (q_KGSH,) = block.arrays

    def visit(t: jax.Array, sums_: tuple) -> tuple:
      top_KGS, total_KGS, o_KGSV = sums_
      k_KZH, v_KZV, there = key_block((k_BMKH, v_BMKV), keys, b, visited(way, b, i, t), way)
      s_KGSZ, seen_SZ, _ = score(q_KGSH, k_KZH, block.tokens, there)
      s_KGSZ = jnp.where(seen_SZ, s_KGSZ, -jnp.inf)
      higher_KGS = jnp.maximum(top_KGS, s_KGSZ.max(-1))
      base_KGS = jnp.where(higher_KGS == -jnp.inf, 0, higher_KGS)
      p_KGSZ, kept_KGS = jnp.exp(s_KGSZ - base_KGS[..., None]), jnp.exp(top_KGS - base_KGS)
      more = jnp.einsum(
        'KGSZ,KZV->KGSV', p_KGSZ.astype(v_KZV.dtype), v_KZV, preferred_element_type=dtype
      )
      return higher_KGS, total_KGS * kept_KGS + p_KGSZ.sum(-1), o_KGSV * kept_KGS[..., None] + more

    shape = q_KGSH.shape[:-1]
    start = (
      jnp.full(shape, -jnp.inf, dtype),
      jnp.zeros(shape, dtype),
      jnp.zeros((*shape, V), dtype),
    )
    start = vary_like(start, told)
    top_KGS, total_KGS, o_KGSV = jax.lax.fori_loop(0, counted(way, b, i), visit, start)
    o_KGSV = o_KGSV / jnp.where(total_KGS == 0, 1, total_KGS)[..., None]
    return o_KGSV.astype(v_BMKV.dtype), top_KGS + jnp.log(total_KGS)

  o_nKGSV, lse_nKGS = over_blocks(one, queries, way.sizes.query, (by_kv_head(q_BLNH, K),))
  back = functools.partial(rearrange, B=len(q_BLNH))
  return (
    back(o_nKGSV, '(B I) K G S V -> B (I S) (K G) V'),
    back(lse_nKGS, '(B I) K G S -> B (I S) (K G)'),
  )


def backward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  queries: Tokens,
  keys: Tokens,
  band: Band,
  way: Pass,
  scale: float,
  soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq, dk, dv) in the inputs' dtypes, summed in at least fp32."""
  told = q_BLNH, k_BMKH, v_BMKV, do_BLNV, queries, keys, way
  K, dtype = k_BMKH.shape[2], sums(q_BLNH)
  score = functools.partial(scores, band=band, scale=scale, soft_cap=soft_cap)
  dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
  Z = way.sizes.key

  def one(
    b: jax.Array, i: jax.Array, block: Block, dkv: tuple
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    q_KGSH, do_KGSV, lse_KGS, delta_KGS = block.arrays

    def visit(t: jax.Array, kept: tuple) -> tuple:
      dq_KGSH, dkv = kept
      j = visited(way, b, i, t)
      k_KZH, v_KZV, there = key_block((k_BMKH, v_BMKV), keys, b, j, way)
      s_KGSZ, seen_SZ, slope = score(q_KGSH, k_KZH, block.tokens, there)
      lse_KGS1 = jnp.where(lse_KGS == -jnp.inf, 0, lse_KGS)[..., None]
      p_KGSZ = jnp.where(seen_SZ, jnp.exp(jnp.where(seen_SZ, s_KGSZ - lse_KGS1, 0)), 0)
      dp_KGSZ = dot('KGSV,KZV->KGSZ', do_KGSV, v_KZV)
      ds_KGSZ = (p_KGSZ * (dp_KGSZ - delta_KGS[..., None]) * slope * scale).astype(k_KZH.dtype)
      dq_KGSH += dot('KGSZ,KZH->KGSH', ds_KGSZ, k_KZH)
      dk_ZKH = dot('KGSZ,KGSH->ZKH', ds_KGSZ, q_KGSH)
      dv_ZKV = dot('KGSZ,KGSV->ZKV', p_KGSZ.astype(do_KGSV.dtype), do_KGSV)
      return dq_KGSH, tuple(add_at(x, y, b, j * Z) for x, y in zip(dkv, (dk_ZKH, dv_ZKV)))

    start = (vary_like(jnp.zeros(q_KGSH.shape, dtype), told), dkv)
    return jax.lax.fori_loop(0, counted(way, b, i), visit, start)

  arrays = tuple(by_kv_head(x, K) for x in (q_BLNH, do_BLNV, lse_BLN, delta_BLN))
  zeros = vary_like(tuple(jnp.zeros(x.shape, dtype) for x in (k_BMKH, v_BMKV)), told)
  dq_nKGSH, (dk, dv) = over_blocks(one, queries, way.sizes.query, arrays, zeros)
  dq = rearrange(dq_nKGSH, '(B I) K G S H -> B (I S) (K G) H', B=len(q_BLNH))
  return dq.astype(q_BLNH.dtype), dk.astype(k_BMKH.dtype), dv.astype(v_BMKV.dtype)


def scores(
  q_KGSH: jax.Array,
  k_KZH: jax.Array,
  here: Tokens,
  there: Tokens,
  band: Band,
  scale: float,
  soft_cap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array | float]:
  """Scores of two blocks, which of them are seen, and the soft cap's derivative."""
  s_KGSZ = scale * jnp.einsum('KGSH,KZH->KGSZ', q_KGSH, k_KZH, preferred_element_type=sums(q_KGSH))
  seen_SZ = sees(*jax.tree.map(lambda x: x[None], (here, there)), band)[0]
  if soft_cap is None:
    return s_KGSZ, seen_SZ, 1.0
  tanh_KGSZ = jnp.tanh(s_KGSZ / soft_cap)
  return soft_cap * tanh_KGSZ, seen_SZ, 1 - tanh_KGSZ**2


def by_kv_head(x_BLN: jax.Array, K: int) -> jax.Array:
  """[B, L, N, …] as [B, K, G, L, …]."""
  return rearrange(x_BLN, 'B L (K G) ... -> B K G L ...', K=K)


def over_blocks(
  one: Callable, queries: Tokens, size: int, arrays: tuple[jax.Array, ...], carry: Any = None
) -> Any:
  """`one(row, block, Block[, carry])` over all blocks of all rows, stacked (B I), and the carry."""
  B, L = queries.index_BM.shape
  I = L // size

  def step(carry: Any, n: jax.Array) -> tuple[Any, Any]:
    b, i = n // I, n % I
    tokens = Tokens(*(jax.lax.dynamic_slice(x, (b, i * size), (1, size))[0] for x in queries))
    part = tuple(
      jax.lax.dynamic_slice(
        x, (b, 0, 0, i * size, *(0,) * (x.ndim - 4)), (1, *x.shape[1:3], size, *x.shape[4:])
      )[0]
      for x in arrays
    )
    if carry is None:
      return None, one(b, i, Block(tokens, part))
    made, carry = one(b, i, Block(tokens, part), carry)
    return carry, made

  carry, made = jax.lax.scan(step, carry, jnp.arange(B * I))
  return made if carry is None else (made, carry)


def key_block(
  memory: tuple[jax.Array, ...], keys: Tokens, b: jax.Array, j: jax.Array, way: Pass
) -> tuple[jax.Array, jax.Array, Tokens]:
  """Block j of row b: keys and values as [K, Z, …], and where they stand."""
  Z = way.sizes.key
  take = lambda x: jax.lax.dynamic_slice(x, (b, j * Z, *(0,) * (x.ndim - 2)), (1, Z, *x.shape[2:]))
  k_KZH, v_KZV = (rearrange(take(x)[0], 'Z K H -> K Z H') for x in memory)
  return k_KZH, v_KZV, Tokens(*(take(x)[0] for x in keys))


def counted(way: Pass, b: jax.Array, i: jax.Array) -> jax.Array:
  """How many blocks block i of row b visits."""
  match way.visits:
    case Range(_, count_BI):
      return count_BI[b, i]
    case Listed(ids_BIT):
      return (ids_BIT[b, i] >= 0).sum()


def visited(way: Pass, b: jax.Array, i: jax.Array, t: jax.Array) -> jax.Array:
  """The t-th of them."""
  match way.visits:
    case Range(first_BI, _):
      return first_BI[b, i] + t
    case Listed(ids_BIT):
      return ids_BIT[b, i, t]


def add_at(x_BMK: jax.Array, y_ZK: jax.Array, b: jax.Array, at: jax.Array) -> jax.Array:
  """x with y added to row b from place `at` on."""
  start = (b, at, 0, 0)
  old = jax.lax.dynamic_slice(x_BMK, start, (1, *y_ZK.shape))
  return jax.lax.dynamic_update_slice(x_BMK, old + y_ZK[None], start)
