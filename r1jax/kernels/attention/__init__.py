"""Attention over a memory, with grouped heads and unequal key and value widths.

    o = softmax(scale · q kᵀ + mask) v          2·B·N·L·M·(H + V) flops

The XLA implementation materializes B·N·L·M scores in fp32.
"""

import jax

from r1jax.kernels.attention import reference
from r1jax.kernels.platform import resolve


def attention(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  mask_BLM: jax.Array,
  scale: float,
  implementation: str | None = None,
) -> jax.Array:
  """Grouped-query attention; N is a multiple of K. Rows that see nothing give zeros."""
  resolve(implementation, {'*': 'xla'}, ('xla',))
  return reference.attention(q_BLNH, k_BMKH, v_BMKV, mask_BLM, scale)


def latent_attention(
  q_BLNC: jax.Array,
  kv_BMC: jax.Array,
  mask_BLM: jax.Array,
  scale: float,
  implementation: str | None = None,
) -> jax.Array:
  """Absorbed MLA: one memory, key and value alike, that all heads share; gives o_BLNC.

  Not `attention` with one head: given the same array as key and as value, XLA copies it twice.
  """
  resolve(implementation, {'*': 'xla'}, ('xla',))
  return reference.latent_attention(q_BLNC, kv_BMC, mask_BLM, scale)
