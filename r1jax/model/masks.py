"""Who sees whom: the same segment, not the future. Segment 0 is padding and sees nothing."""

import jax
import jax.numpy as jnp


def within(positions_BL: jax.Array, segments_BL: jax.Array) -> jax.Array:
  """Mask_BLM of a batch over itself; packed segments are independent."""
  same = segments_BL[:, :, None] == segments_BL[:, None, :]
  past = positions_BL[:, None, :] <= positions_BL[:, :, None]
  return same & past & (segments_BL > 0)[:, :, None]


def over_cache(positions_BL: jax.Array, segments_BL: jax.Array, length: int) -> jax.Array:
  """Mask_BLM over cache slots: slot m holds position m of the row's one sequence."""
  slots_M = jnp.arange(length)
  return (slots_M <= positions_BL[:, :, None]) & (segments_BL > 0)[:, :, None]
