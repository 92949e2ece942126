"""Attention, as a specification; scores and softmax in at least fp32."""

import jax
import jax.numpy as jnp
from einops import rearrange

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
