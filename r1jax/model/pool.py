"""Attention of one query a row over the pool itself: pages and rings are not copied first.

    Full      every page of the row's table up to its newest position
    Window    the pages that hold the last w positions, or those places of the row's ring
    TopK      single places, of the keys that the indexer chooses among all of the row's
    Blocks    lists of three kinds in memories of their own: nsa_pool.py
    Hybrid    the window's, and single places of key tokens before it; in a bounded cache the pages
              in which they are pinned; mixed as over the batch (attend.py)

The pattern becomes lists and kernels/paged reads what they name, int8 as it is. Chunks of a prompt
and drafts to verify meet a gathered copy under a mask (`cache.look`, attend.over_memory), and give
the same numbers.

Cost a layer: 2·B·N·(H + V) flops a place that is seen, K·(H + V) numbers read. Over pages a hybrid
layer also reads one number a position, to choose key tokens anew: O(M) work, of which 1/(K·(H + V))
is what full attention reads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels.paged import paged_attention, selected_rows
from r1jax.kernels.paged.memory import Stack
from r1jax.kernels.paged.visible import (
  Visible,
  pages_of_window,
  visible_full,
  visible_ring,
  visible_window,
)
from r1jax.model import cache as caches
from r1jax.model import indexer, keys
from r1jax.model.attend import Part, mixed
from r1jax.model.cache import (
  Blocked,
  Cache,
  Candidates,
  IndexKeys,
  Pages,
  Pinned,
  Pool,
  Ring,
  newest,
)
from r1jax.model.config import Blocks, Full, Hybrid, Pattern, TopK, Watched, Window
from r1jax.model.keys import Marks
from r1jax.model.types import Place
from r1jax.sharding import rules

PAGE = 64  # places of a slot's page, at most
LONG = 1024  # positions of a memory of heads that is read in place on a CPU too


class Read(NamedTuple):
  """What every read of a step has in common."""

  q_BNH: jax.Array
  layer: jax.Array
  scale: float
  width: int | None

  def pages(self, arrays: tuple, visible: Visible) -> Part:
    """(o_BNV, lse_BN) over the listed pages of a cache's arrays."""
    return paged_attention(
      self.q_BNH, *_keys_and_values(arrays), self.layer, visible, self.scale, self.width
    )

  def places(self, arrays: tuple, ids: jax.Array) -> Part:
    """The same over single places, [B, G], or [B, K, G] of each head its own."""
    return selected_rows(
      self.q_BNH, *_keys_and_values(arrays), self.layer, ids, self.scale, self.width
    )


def _keys_and_values(arrays: tuple) -> tuple[tuple[Stack, ...], tuple[Stack, ...] | None]:
  """Of a latent cache the values are the keys' first numbers; candidates are neither."""
  return (arrays[0], arrays[1]) if _grouped(arrays) else (arrays[0], None)


def _grouped(arrays: tuple) -> bool:
  """Keys and values of heads, not latents."""
  return jax.tree.leaves(arrays[0])[0].ndim == 5


def serves(
  cache: Cache | Blocked, place: Place, pattern: Pattern, platform: str | None = None
) -> bool:
  """Whether a step reads the pool itself; else it gathers the memory and masks it."""
  if place.positions_BL.shape[1] > 1:
    return False
  match cache:
    case Ring() | Pinned():
      return True
    case Pages():
      T = place.table_BT.shape[1]
      platform = platform or jax.default_backend()
      return platform != 'cpu' or _cheaper(_grouped(cache.arrays), T, page_size(cache), pattern)
    case Blocked(select=select):
      return serves(select, place, pattern, platform)
    case _:
      return False


def _cheaper(grouped: bool, pages: int, size: int, pattern: Pattern) -> bool:
  """On CPU: whether lists beat the copy over tables of so many pages.

  Reading all of it they do over a long memory of heads, where the copy is laid out anew to be
  multiplied, but not over latents: `python -m tests.benchmarks.decode --only=paths` shows both.
  Learned blocks have three memories to copy: of two models, two patterns and 64 to 16,384 positions
  lists were slower only where they name more places than that.
  """
  match pattern:
    case Full() | Watched():
      return grouped and pages * size > LONG
    case Window(w):
      seen = pages_of_window(w, size) * size
    case TopK(keys=seen):
      pass
    case Hybrid(w):
      seen = pages_of_window(w, size) * size + keys.most(pattern, pages * size)
    case Blocks(window=w):
      seen = pages_of_window(w, size) * size + min(pattern.selected * pattern.select, pages * size)
      return seen <= 3 * pages * size
  return 2 * seen <= pages * size


def over_pool(
  q_BLNH: jax.Array,
  cache: Pool,
  place: Place,
  pattern: Pattern,
  marked: Marks,
  scale: float,
  width: int | None = None,
  chosen_BLT: jax.Array | None = None,
) -> jax.Array:
  """o_BLNV of one query a row, behind `cache.put`.

  chosen_BLT: of TopK what `choose` gave. width: of values that are part of the keys.
  """
  read, newest_B = Read(q_BLNH[:, 0], place.layer, scale, width), newest(place)
  whole = lambda part: (part[0][:, None], part[1][:, None])
  match cache, pattern:
    case Pages(arrays), Full() | Watched():
      near = read.pages(arrays, visible_full(place.table_BT, newest_B, page_size(cache)))
    case Pages(arrays), TopK():
      near = read.places(arrays, ids_of(cache, place, chosen_BLT[:, 0] - 1))
    case Pages(arrays), Window(w) | Hybrid(w):
      near = read.pages(arrays, visible_window(place.table_BT, newest_B, page_size(cache), w))
    case (Ring(arrays), Window(w)) | (Pinned(arrays), Hybrid(w)):
      near = read.pages(*_ring(arrays, place, newest_B, w))
  if not isinstance(pattern, Hybrid):
    return whole(near)[0]
  match cache:
    case Pages():
      far = read.places(cache.arrays, _key_places(cache, place, newest_B, pattern, q_BLNH.dtype))
    case Pinned():
      far = read.pages(*_pins(cache, place, newest_B - pattern.window))
  return mixed(pattern, whole(near), whole(far), marked)


def choose(
  cache: Pool,
  place: Place,
  pattern: Pattern,
  marks: indexer.Marks | None,
  chosen_BLT: jax.Array | None,
) -> jax.Array | None:
  """Of TopK the keys that a step chooses among those of the pages; None of other patterns."""
  if not isinstance(pattern, TopK):
    return None
  index_BMI = caches.look(cache, place, IndexKeys(marks.k_BLI)).memory.index_nBMI
  at = indexer.places(place, index_BMI.shape[1])
  return indexer.choose(marks, index_BMI, at, place, pattern, chosen_BLT)[1]


def ids_of(cache: Pages, place: Place, position: jax.Array) -> jax.Array:
  """Ids of the places of these positions, [B, G] or by head [B, K, G]; −1 for those below 0."""

  def find(position: jax.Array, table: jax.Array) -> jax.Array:
    at = jnp.maximum(position, 0)
    page = jnp.take_along_axis(table, at // size, -1, mode='fill', fill_value=-1)
    return jnp.where((position >= 0) & (page >= 0), page * size + at % size, -1).astype(jnp.int32)

  size, table_BT = page_size(cache), place.table_BT
  if position.ndim == 2:
    return rules.by_rows(find, position, table_BT)
  B, K, _ = position.shape
  table_BKT = jnp.broadcast_to(table_BT[:, None], (B, K, table_BT.shape[1]))
  return rules.by_rows(find, position, table_BKT, axes=('batch', 'kv_heads'))


def page_size(cache: Pages) -> int:
  """Places of a page."""
  return jax.tree.leaves(cache)[0].shape[2]


def page_of(places: int) -> int:
  """Places of the pages that a slot of so many is read in; the whole slot, if it splits badly."""
  size = max(n for n in range(1, min(places, PAGE) + 1) if places % n == 0)
  return size if size >= 8 else places


def _paged(arrays: tuple, size: int) -> tuple:
  """Slots [n, slots, R, …] as pages [n, slots·R/size, size, …]."""
  return jax.tree.map(lambda x: x.reshape(len(x), -1, size, *x.shape[3:]), arrays)


def _slots(place: Place) -> jax.Array:
  """Each row's slot, by the numbers of its shard."""
  if place.slots_B is not None:
    return place.slots_B
  return rules.by_rows(lambda x_BL: jnp.cumsum(jnp.ones_like(x_BL[:, 0])) - 1, place.positions_BL)


def _ring(arrays: tuple, place: Place, newest_B: jax.Array, window: int) -> tuple[tuple, Visible]:
  R = jax.tree.leaves(arrays)[0].shape[2]
  size = page_of(R)
  return _paged(arrays, size), visible_ring(_slots(place), newest_B, R, size, window)


def _pins(cache: Pinned, place: Place, last_B: jax.Array) -> tuple[tuple, Visible]:
  """Pinned places of positions up to `last`: the first ones, for positions ascend."""
  at_BG = caches.pinned_at(cache, place)
  count_B = ((at_BG >= 0) & (at_BG <= last_B[:, None])).sum(1)
  G = at_BG.shape[1]
  size = page_of(G)
  table_BT = _slots(place)[:, None] * (G // size) + jnp.arange(G // size)
  return _paged(cache.arrays, size), visible_full(table_BT, count_B - 1, size)


def _key_places(
  cache: Pages, place: Place, newest_B: jax.Array, pattern: Hybrid, dtype: jnp.dtype
) -> jax.Array:
  """Ids [B, G] of the places of key tokens before the window."""
  size, B = page_size(cache), len(place.table_BT)
  candidates_BM = caches.look(
    cache, place, Candidates(jnp.zeros((B, 1, 1), dtype))
  ).memory.candidate_nBM1[..., 0]
  find = functools.partial(_found, pattern=pattern, size=size)
  return rules.by_rows(find, candidates_BM > 0.5, place.table_BT, newest_B)


def _found(
  candidates_BM: jax.Array, table_BT: jax.Array, newest_B: jax.Array, pattern: Hybrid, size: int
) -> jax.Array:
  """Which places the key tokens are among these candidates, in order; −1 behind the last."""
  B, M = candidates_BM.shape
  at_BM = jnp.broadcast_to(jnp.arange(M, dtype=jnp.int32), (B, M))
  none_B = jnp.zeros(B, jnp.int32)
  count_BM = keys.counted(candidates_BM, at_BM, at_BM <= newest_B[:, None], none_B, pattern)
  g_G = jnp.arange(keys.most(pattern, M), dtype=jnp.int32)
  # Where the count first exceeds g stands the g-th key token: M where it never does.
  position_BG = jax.vmap(lambda c_M: jnp.searchsorted(c_M, g_G, side='right'))(count_BM)
  page_BG = jnp.take_along_axis(table_BT, position_BG // size, 1, mode='fill', fill_value=-1)
  seen_BG = (position_BG <= newest_B[:, None] - pattern.window) & (page_BG >= 0)
  return jnp.where(seen_BG, page_BG * size + position_BG % size, -1).astype(jnp.int32)
