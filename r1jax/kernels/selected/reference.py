"""Attention over listed pages as a specification: an L×M mask; scores and softmax in ≥ fp32."""

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import sees
from r1jax.kernels.platform import sums


def selected_attention(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  ids_BLKT: jax.Array,
  size: int,
  queries: Tokens,
  keys: Tokens,
  scale: float,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN): softmax(scale · q kᵀ) v over the keys seen in listed pages."""
  page_M = jnp.arange(k_BMKH.shape[1]) // size
  chosen_BLKM = (ids_BLKT[..., None] == page_M).any(-2)
  seen_BLKGM = (chosen_BLKM & sees(queries, keys, Band())[:, :, None])[:, :, :, None]
  q_BLKGH = rearrange(q_BLNH, 'B L (K G) H -> B L K G H', K=k_BMKH.shape[2])
  s_BLKGM = jnp.einsum('BLKGH,BMKH->BLKGM', q_BLKGH, k_BMKH, preferred_element_type=sums(q_BLNH))
  p_BLKGM, lse_BLKG = softmax(scale * s_BLKGM, seen_BLKGM)
  o_BLKGV = jnp.einsum('BLKGM,BMKV->BLKGV', p_BLKGM.astype(v_BMKV.dtype), v_BMKV)
  join = lambda x: x.reshape(*q_BLNH.shape[:3], *x.shape[4:])
  return join(o_BLKGV), join(lse_BLKG)


def softmax(s: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Probabilities over the last axis and their lse; over nothing seen 0 and −inf."""
  top = jax.lax.stop_gradient(jnp.where(seen, s, jnp.finfo(s.dtype).min).max(-1, keepdims=True))
  e = jnp.where(seen, jnp.exp(jnp.where(seen, s - top, 0)), 0)
  total = e.sum(-1, keepdims=True)
  some = jnp.where(total > 0, total, 1)
  lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)
  return e / some, lse[..., 0]
