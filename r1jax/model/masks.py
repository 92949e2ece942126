"""Who sees whom: the same segment, not the future. Segment 0 is padding and sees nothing."""

import jax
import jax.numpy as jnp

from r1jax.model.config import Full, Window

Pattern = Full | Window


def within(positions_BL: jax.Array, segments_BL: jax.Array, pattern: Pattern = Full()) -> jax.Array:
  """Mask_BLM of a batch over itself; packed segments are independent."""
  same = segments_BL[:, :, None] == segments_BL[:, None, :]
  seen = visible(positions_BL[:, None, :], positions_BL[:, :, None], pattern)
  return same & seen & (segments_BL > 0)[:, :, None]


def over_cache(
  positions_BL: jax.Array, segments_BL: jax.Array, length: int, pattern: Pattern = Full()
) -> jax.Array:
  """Mask_BLM over cache slots: slot m holds position m of the row's one sequence."""
  seen = visible(jnp.arange(length), positions_BL[:, :, None], pattern)
  return seen & (segments_BL > 0)[:, :, None]


def visible(there: jax.Array, here: jax.Array, pattern: Pattern) -> jax.Array:
  """Whether position `here` sees position `there` of the same sequence."""
  match pattern:
    case Full():
      return there <= here
    case Window(window):
      return (there <= here) & (there > here - window)
