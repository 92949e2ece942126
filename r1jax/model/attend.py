"""What a layer's pattern makes of attention: over the batch itself, and over a cache.

    Full     every key before the query             O(L²) flops
    Window   the last w                             O(L · w)
    Hybrid   the last w, and key tokens further back (keys.py), mixed as one softmax over the union,
             by fixed weights or by a learned gate  O(L · (w + G)), G key tokens
    Blocks   has keys of its own in each branch: a module of its own, nsa.py

Over the batch keys of long rows are found by index lists (kernels/attention/lists.py) and key
tokens are gathered from the sequence: nothing of L × M is made. Short rows, where that costs more
than it saves, and the few queries that meet a cache see the whole memory under a mask.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.kernels.attention import attention
from r1jax.kernels.attention.blocks import banded_attention, merge
from r1jax.kernels.attention.dense import dense_attention
from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.model import keys, masks
from r1jax.model.cache import Held
from r1jax.model.config import Fixed, Full, Gate, Hybrid, Pattern, Union, Watched, Window
from r1jax.model.keys import Marks
from r1jax.model.types import Place

# Positions that full and windowed attention scores at once, [B, N, L, L], by backend. On CPU blocks
# are as fast from 128 on and several times faster from 512; elsewhere the bound is not measured.
SHORT = {'cpu': 128, '*': 4096}
FEW = 512  # the same of hybrid attention, whose blocks cost far less

Part = tuple[jax.Array, jax.Array]


def over_batch(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKV: jax.Array,
  place: Place,
  pattern: Pattern,
  marked: Marks,
  scale: float,
) -> jax.Array:
  """o_BLNV of a batch over itself."""
  L = q_BLNH.shape[1]
  short = q_BLNH.shape[1] <= SHORT.get(jax.default_backend(), SHORT['*'])
  index_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), place.segments_BL.shape)
  here = Tokens(index_BL, place.segments_BL)

  def banded(band: Band) -> Part:
    return banded_attention(q_BLNH, k_BLKH, v_BLKV, here, here, band, scale)

  match pattern:
    case Full() | Watched() | Window() if short:
      mask_BLM = masks.within(place.positions_BL, place.segments_BL, pattern)
      return attention(q_BLNH, k_BLKH, v_BLKV, mask_BLM, scale)
    case Full() | Watched():
      return dense_attention(q_BLNH, k_BLKH, v_BLKV, here, scale)
    case Window(window):
      return banded(Band(0, window))[0]
    case Hybrid(window):
      at = place.positions_BL, place.segments_BL
      chosen_BL = keys.chosen(marked.candidates_BL, *at, pattern)
      if L <= FEW:
        near_BLM, before_BLM = (masks.within(*at, p) for p in (Window(window), Full()))
        attend = lambda mask_BLM: attention(q_BLNH, k_BLKH, v_BLKV, mask_BLM, scale)
        return masked(attend, near_BLM, before_BLM & chosen_BL[:, None], pattern, marked)
      near = banded(Band(0, window))
      if window >= L:
        return near[0]
      at_BG, there = keys.gathered(chosen_BL, here, pattern)
      take = lambda x: jnp.take_along_axis(x, at_BG[:, :, None, None], 1, mode='fill', fill_value=0)
      k_BGKH, v_BGKV = take(k_BLKH), take(v_BLKV)
      far = banded_attention(q_BLNH, k_BGKH, v_BGKV, here, there, Band(window), scale)
      return mixed(pattern, near, far, marked)


def mixed(pattern: Hybrid, near: Part, far: Part, marked: Marks) -> jax.Array:
  """Window and key tokens as the pattern mixes them."""
  match pattern.mix:
    case Union():
      return merge([near, far])[0]
    case Fixed(window, key):
      weight_BLN = jnp.full(far[1].shape, window), jnp.full(far[1].shape, key)
    case Gate():
      weight_BLN = marked.gate_BLN, 1 - marked.gate_BLN
  alone_BLN = far[1] == -jnp.inf
  a_BLN = jnp.where(alone_BLN, 1, weight_BLN[0])[..., None]
  b_BLN = jnp.where(alone_BLN, 0, weight_BLN[1])[..., None]
  return (a_BLN * near[0] + b_BLN * far[0]).astype(near[0].dtype)


def over_memory(
  attend: Callable[[jax.Array], jax.Array],
  place: Place,
  held: Held,
  length: int,
  pattern: Pattern,
  marked: Marks,
) -> jax.Array:
  """o_BLNV of queries over a memory of `length`; attend(mask_BLM) is its attention."""
  at = place.positions_BL, place.segments_BL
  if not isinstance(pattern, Hybrid):
    return attend(masks.over_cache(*at, length, pattern, held.positions_BM))
  window_BLM = masks.over_cache(*at, length, Window(pattern.window), held.positions_BM)
  candidates_BM = held.memory.candidate_nBM1[..., 0] > 0.5
  if held.positions_BM is None:
    positions_BM = jnp.broadcast_to(jnp.arange(length), candidates_BM.shape)
    chosen_BM = keys.chosen(candidates_BM, positions_BM, jnp.ones_like(positions_BM), pattern)
    near_BLM = window_BLM
  else:  # pinned tokens lie in the ring as well while the window holds them
    chosen_BM = candidates_BM
    near_BLM = window_BLM & ~chosen_BM[:, None]
  before_BLM = masks.over_cache(*at, length, Full(), held.positions_BM)
  far_BLM = before_BLM & ~window_BLM & chosen_BM[:, None]
  return masked(attend, near_BLM, far_BLM, pattern, marked)


def masked(
  attend: Callable[[jax.Array], jax.Array],
  near_BLM: jax.Array,
  chosen_BLM: jax.Array,
  pattern: Hybrid,
  marked: Marks,
) -> jax.Array:
  """The mix of the window and the chosen keys beyond it, by attention under masks."""
  if pattern.mix == Union():
    return attend(near_BLM | chosen_BLM)
  far_BLM = chosen_BLM & ~near_BLM
  seen_BLN = jnp.where(far_BLM.any(-1), 0, -jnp.inf)[..., None]
  near_BLNV, far_BLNV = attend(near_BLM), attend(far_BLM)
  seen_BLN = jnp.broadcast_to(seen_BLN, near_BLNV.shape[:-1])
  return mixed(pattern, (near_BLNV, seen_BLN), (far_BLNV, seen_BLN), marked)
