"""Attention, as a specification; scores and softmax in at least fp32."""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from r1jax.kernels.attention.lists import Band, Pass, Tokens, visited_ids
from r1jax.kernels.platform import sums


def attention(
  q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array, mask_BLM: jax.Array, scale: float
) -> jax.Array:
  """softmax(scale · q kᵀ) v under a mask; a query that sees nothing gives zeros."""
  q_BLKGH = rearrange(q_BLNH, 'B L (K G) H -> B L K G H', K=k_BMKH.shape[2])
  s_BKGLM = jnp.einsum('BLKGH,BMKH->BKGLM', q_BLKGH, k_BMKH, preferred_element_type=sums(q_BLNH))
  p_BKGLM = masked_softmax(s_BKGLM * scale, mask_BLM[:, None, None])
  o_BLKGV = jnp.einsum('BKGLM,BMKV->BLKGV', p_BKGLM.astype(v_BMKV.dtype), v_BMKV)
  return rearrange(o_BLKGV, 'B L K G V -> B L (K G) V')


def latent_attention(
  q_BLNC: jax.Array, kv_BMC: jax.Array, mask_BLM: jax.Array, scale: float
) -> jax.Array:
  """softmax(scale · q kvᵀ) kv under a mask, one memory for all heads."""
  s_BNLM = jnp.einsum('BLNC,BMC->BNLM', q_BLNC, kv_BMC, preferred_element_type=sums(q_BLNC))
  p_BNLM = masked_softmax(s_BNLM * scale, mask_BLM[:, None])
  return jnp.einsum('BNLM,BMC->BLNC', p_BNLM.astype(kv_BMC.dtype), kv_BMC)


def masked_softmax(s: jax.Array, mask: jax.Array) -> jax.Array:
  """softmax over the last axis where mask holds, else zero; nothing visible: all zero, not NaN."""
  low = jnp.finfo(s.dtype).min
  s = jnp.where(mask, s, low)
  p = jnp.exp(s - jax.lax.stop_gradient(s.max(-1, keepdims=True))) * mask
  return p / jnp.maximum(p.sum(-1, keepdims=True), jnp.finfo(s.dtype).tiny)


def block_attention(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
  band: Band,
  forward: Pass,
  scale: float,
  soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN) over an L×M mask: softmax(cap(scale · q kᵀ)) v, and its denominator's log."""
  G = q_BLNH.shape[2] // k_BMKH.shape[2]
  k_BMNH, v_BMNV = (repeat(x, 'B M K H -> B M (K G) H', G=G) for x in (k_BMKH, v_BMKV))
  s_BNLM = scale * jnp.einsum(
    'BLNH,BMNH->BNLM', q_BLNH, k_BMNH, preferred_element_type=sums(q_BLNH)
  )
  s_BNLM = s_BNLM if soft_cap is None else soft_cap * jnp.tanh(s_BNLM / soft_cap)
  mask_B1LM = (sees(queries, keys, band) & visited(forward, k_BMKH.shape[1]))[:, None]
  seen_BNL = jnp.broadcast_to(mask_B1LM.any(-1), s_BNLM.shape[:-1])
  s_BNLM = jnp.where(mask_B1LM, s_BNLM, -jnp.inf)
  lse_BNL = jnp.where(
    seen_BNL, jax.nn.logsumexp(jnp.where(seen_BNL[..., None], s_BNLM, 0), -1), -jnp.inf
  )
  p_BNLM = masked_softmax(jnp.where(mask_B1LM, s_BNLM, 0), mask_B1LM)
  o_BLNV = jnp.einsum('BNLM,BMNV->BLNV', p_BNLM.astype(v_BMNV.dtype), v_BMNV)
  return o_BLNV, rearrange(lse_BNL, 'B N L -> B L N')


def sees(queries: Tokens, keys: Tokens, band: Band) -> jax.Array:
  """Whether query l sees key m, were every block visited: mask_BLM."""
  distance_BLM = queries.index_BM[:, :, None] - keys.index_BM[:, None]
  same = queries.segments_BM[:, :, None] == keys.segments_BM[:, None]
  near = same & (keys.segments_BM > 0)[:, None] & (distance_BLM >= band.near)
  return near if band.far is None else near & (distance_BLM < band.far)


def visited(forward: Pass, length: int) -> jax.Array:
  """Mask_BLM of the pairs in blocks that visit each other."""
  ids_BIT = visited_ids(forward.visits, length // forward.sizes.key)
  pairs_BIJ = (ids_BIT[..., None] == jnp.arange(length // forward.sizes.key)).any(2)
  return jnp.repeat(jnp.repeat(pairs_BIJ, forward.sizes.query, 1), forward.sizes.key, 2)
