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
  q_BLNR: jax.Array,
  q_BLNP: jax.Array,
  latent_BMR: jax.Array,
  rope_BMP: jax.Array,
  mask_BLM: jax.Array,
  scale: float,
  implementation: str | None = None,
) -> jax.Array:
  """Absorbed MLA: keys are [latent; rope], values the latent, one head of each for all queries.

  The two parts of a key are never joined: a copy of a layer's cache would cost as much memory and
  traffic as the reading itself.
  """
  resolve(implementation, {'*': 'xla'}, ('xla',))
  return reference.latent_attention(q_BLNR, q_BLNP, latent_BMR, rope_BMP, mask_BLM, scale)
