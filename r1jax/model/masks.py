"""Who sees whom: the same segment, not the future. Segment 0 is padding and sees nothing."""

import jax
import jax.numpy as jnp

from r1jax.model.config import Full, Watched, Window


def within(
  positions_BL: jax.Array, segments_BL: jax.Array, pattern: Full | Watched | Window = Full()
) -> jax.Array:
  """Mask_BLM of a batch over itself; packed segments are independent."""
  same = segments_BL[:, :, None] == segments_BL[:, None, :]
  seen = visible(positions_BL[:, None, :], positions_BL[:, :, None], pattern)
  return same & seen & (segments_BL > 0)[:, :, None]


def over_cache(
  positions_BL: jax.Array,
  segments_BL: jax.Array,
  length: int,
  pattern: Full | Watched | Window = Full(),
  there_BM: jax.Array | None = None,
) -> jax.Array:
  """Mask_BLM over cache slots: slot m holds position m of the row's one sequence.

  there_BM: what it holds instead, in a ring; negative: nothing of this sequence.
  """
  match pattern:
    case Window(w) if there_BM is not None and length < (need := w + positions_BL.shape[1] - 1):
      raise ValueError(
        f'a ring of {length} positions under a window of {w} and chunks of '
        f'{positions_BL.shape[1]}; it needs {need}, or shorter chunks'
      )
  there = jnp.arange(length) if there_BM is None else there_BM[:, None]
  seen = visible(there, positions_BL[:, :, None], pattern)
  seen = seen if there_BM is None else seen & (there >= 0)
  return seen & (segments_BL > 0)[:, :, None]


def visible(there: jax.Array, here: jax.Array, pattern: Full | Watched | Window) -> jax.Array:
  """Whether position `here` sees position `there` of the same sequence."""
  match pattern:
    case Full() | Watched():
      return there <= here
    case Window(window):
      return (there <= here) & (there > here - window)
