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
