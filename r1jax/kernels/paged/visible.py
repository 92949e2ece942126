"""What each row of a decode batch sees of a pool of pages: lists of pages and of places in them.

Entry t of a row is page `pages_BT`, of which the places from_BT … to_BT − 1 are seen; −1: no page.
Entries come in any order and a page may come twice, with other places. So every pattern is a list:

    full     all pages of the row's table, the last one up to the newest position
    window   the pages that hold the last w positions, the first one from where the window begins
    ring     the same over blocks of the row's slot, which follow each other round and round
    pinned   pages of a store of their own, with `to` how many of their places are filled

Several queries of a sequence (drafts to verify) are rows of their own. Parts of a pattern are calls
of their own, merged by their lse. Cost: O(B·T) integers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Visible(NamedTuple):
  """pages_BT −1 where there is none; 0 <= from_BT, to_BT <= S."""

  pages_BT: jax.Array
  from_BT: jax.Array
  to_BT: jax.Array


def visible_full(table_BT: jax.Array, newest_B: jax.Array, size: int, first: int = 0) -> Visible:
  """Positions first … newest of sequences whose page t holds t·size …; newest −1: none."""
  t_BT = jnp.broadcast_to(jnp.arange(table_BT.shape[1]), table_BT.shape)
  return _between(lambda _: table_BT, t_BT, jnp.full_like(newest_B, first), newest_B, size)


def visible_window(
  table_BT: jax.Array, newest_B: jax.Array, size: int, window: int, most: int | None = None
) -> Visible:
  """The last `window` positions up to newest, in `most` entries (None: as few as always do)."""
  take = lambda t_BT: jnp.take_along_axis(table_BT, t_BT, 1, mode='fill', fill_value=-1)
  return _window(take, newest_B, size, window, most)


def visible_ring(
  slots_B: jax.Array, newest_B: jax.Array, ring: int, size: int, window: int
) -> Visible:
  """The same where position p lies at place p % ring of the row's slot.

  The memory [n, slots, ring, …] is read as pages [n, slots·ring/size, size, …].
  """
  if ring % size or ring < window:
    raise ValueError(f'a ring of {ring} places for pages of {size} and a window of {window}')
  blocks = ring // size
  return _window(lambda t_BT: slots_B[:, None] * blocks + t_BT % blocks, newest_B, size, window)


def pages_of_window(window: int, size: int) -> int:
  """How many pages can hold parts of `window` neighbouring positions."""
  return (window + size - 2) // size + 1


def seen(visible: Visible, size: int) -> jax.Array:
  """seen_BM over the places of all entries, M = T·size."""
  at = jnp.arange(size)
  from_BT1, to_BT1 = visible.from_BT[..., None], visible.to_BT[..., None]
  seen_BTS = (visible.pages_BT >= 0)[..., None] & (at >= from_BT1) & (at < to_BT1)
  return seen_BTS.reshape(len(visible.pages_BT), -1)


def filled(visible: Visible) -> jax.Array:
  """Entries of which something is seen, [B, T]."""
  return (visible.pages_BT >= 0) & (visible.from_BT < visible.to_BT)


def padded(visible: Visible, multiple: int) -> Visible:
  """With entries of no page up to a multiple."""
  more = ((0, 0), (0, -visible.pages_BT.shape[1] % multiple))
  return Visible(*(jnp.pad(x, more, constant_values=fill) for x, fill in zip(visible, (-1, 0, 0))))


def _window(
  take: Callable[[jax.Array], jax.Array],
  newest_B: jax.Array,
  size: int,
  window: int,
  most: int | None = None,
) -> Visible:
  need = pages_of_window(window, size)
  most = need if most is None else most
  if most < need:
    raise ValueError(f'{most} pages of {size} for a window of {window}; it can lie in {need}')
  first_B = jnp.maximum(newest_B - window + 1, 0)
  t_BT = first_B[:, None] // size + jnp.arange(most)
  return _between(take, t_BT, first_B, newest_B, size)


def _between(
  take: Callable[[jax.Array], jax.Array],
  t_BT: jax.Array,
  first_B: jax.Array,
  last_B: jax.Array,
  size: int,
) -> Visible:
  """Positions first … last in the t-th pages; pages outside are left out."""
  inside = lambda p_B: jnp.clip(p_B[:, None] - t_BT * size, 0, size).astype(jnp.int32)
  from_BT, to_BT = inside(first_B), inside(last_B + 1)
  pages_BT = jnp.where(from_BT < to_BT, take(t_BT), -1)
  return Visible(pages_BT.astype(jnp.int32), from_BT, to_BT)
