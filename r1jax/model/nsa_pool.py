"""Decoding with learned blocks (nsa.py) over the pool itself: one query a row, no memory copied.

    summary   pages of `strides`, from the first unit that ends a block to the row's newest
    select    single places of the chosen blocks, a list for each kv head
    window    the pages that hold the last w positions

What is gathered: the raw tokens of the one block that this token may complete, in whole pages, and
the summaries' keys, by whose scores blocks are chosen. Chunks of a prompt, drafts to verify and
dense caches meet a copy of all (nsa.of_cache), and give the same numbers.

Cost a layer and row, with U = M / stride: 2·N·H·U flops to choose and 4·N·H a place that is seen;
2·K·H numbers read of each of U + selected · select + window + compress places, and K·H of U keys
once more. Copies would read and write 2·K·H of 3·M + U places.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.paged.visible import pages_of_window, visible_full, visible_window
from r1jax.model import cache as caches
from r1jax.model import selection
from r1jax.model.cache import Blocked, KVCache, Pages
from r1jax.model.config import Blocks
from r1jax.model.pool import Read, ids_of, page_size
from r1jax.model.types import Place

# Keys and values, made of raw ones, of where their blocks begin and of their last positions.
Summarize = Callable[[tuple, jax.Array, jax.Array], tuple]


def over_pool(
  q_BLNH: jax.Array,
  cache: Blocked,
  new: list[KVCache],
  place: Place,
  pattern: Blocks,
  scale: float,
  summarize: Summarize,
) -> tuple[Blocked, tuple[jax.Array, jax.Array, jax.Array]]:
  """The cache with one token a row in it; o_BLNH of summaries, of chosen blocks, of the window.

  new: what raw, select and window keep of the token.
  """
  raw, select, window = (caches.put(kind, place, x) for kind, x in zip(cache, new))
  at = selection.completed(place, pattern)
  made = KVCache(*summarize(*_block(raw, place, at, pattern, new[0])))
  strides = caches.put(cache.strides, at, made)
  chosen_BKG = _chosen(q_BLNH, strides, at, made, place, pattern, scale)
  table_BT, read = place.table_BT, Read(q_BLNH[:, 0], place.layer, scale, None)
  first, newest_B = selection.first_unit(pattern), caches.newest(place)
  units = visible_full(table_BT, caches.newest(at), page_size(strides), first)
  last = visible_window(table_BT, newest_B, page_size(window), pattern.window)
  parts = (
    read.pages(strides.arrays, units),
    read.places(select.arrays, ids_of(select, place, chosen_BKG)),
    read.pages(window.arrays, last),
  )
  return Blocked(raw, select, window, strides), tuple(o_BNH[:, None] for o_BNH, _ in parts)


def _block(
  raw: Pages, place: Place, at: Place, pattern: Blocks, like: KVCache
) -> tuple[KVCache, jax.Array, jax.Array]:
  """(raw tokens, where among them the newest block begins, its last position) of each row."""
  size, unit_B1 = page_size(raw), at.positions_BL
  there_B1, past_B1 = at.segments_BL > 0, (unit_B1 + 1) * pattern.stride
  start_B1 = jnp.where(there_B1, past_B1 - pattern.compress, 0)
  page_B1 = start_B1 // size
  page_BT = page_B1 + jnp.arange(pages_of_window(pattern.compress, size))
  table_BT = jnp.take_along_axis(place.table_BT, page_BT, 1, mode='fill', fill_value=-1)
  near = place._replace(positions_BL=place.positions_BL - page_B1 * size, table_BT=table_BT)
  held = caches.look(raw, near, like).memory
  inside_B1 = jnp.where(there_B1, start_B1 % size, held.key_nBMKH.shape[1])
  return held, inside_B1, past_B1 - 1


def _chosen(
  q_BLNH: jax.Array,
  strides: Pages,
  at: Place,
  like: KVCache,
  place: Place,
  pattern: Blocks,
  scale: float,
) -> jax.Array:
  """Positions [B, K, T·select] in the blocks that each kv head chooses; −1 for none or yet to come.

  Blocks are chosen by the keys of the summaries alone.
  """
  keys_alone = like._replace(value_nBMKH=None)
  k_BUKH = caches.look(Pages(strides.arrays[:1]), at, keys_alone).memory.key_nBMKH
  B, U = k_BUKH.shape[:2]
  ends = selection.stored(B, U, pattern)
  here = Tokens(place.positions_BL, (place.segments_BL > 0).astype(jnp.int32))
  own_B1 = place.positions_BL // pattern.select
  in_page = pattern.select // pattern.stride
  whole = -(-U // in_page) * in_page  # strides of all pages; those beyond `ends` count as none
  units_BU = jnp.broadcast_to(jnp.arange(whole, dtype=jnp.int32), (B, whole))
  told = here, ends, selection.Range(own_B1 * 0, own_B1), units_BU, pattern, scale
  ids_BKT1 = selection.choose(q_BLNH, k_BUKH, *told)[:, 0, :, :, None]
  at_BKTS = ids_BKT1 * pattern.select + jnp.arange(pattern.select)
  newest_B111 = caches.newest(place)[:, None, None, None]
  at_BKTS = jnp.where((ids_BKT1 >= 0) & (at_BKTS <= newest_B111), at_BKTS, -1)
  return rearrange(at_BKTS, 'B K T S -> B K (T S)')
