"""Learned sparse attention: an indexer chooses the keys that a query attends to.

    q_I = rotate(c W_q),  k_I = rotate(layer_norm(x W_k)),  w = x W_w / sqrt(J · I)
    ids = top-k of I_ts = Σ_j w_tj ReLU(q_tj · k_s)         (kernels/index)
    o   = attention over these keys alone                   (kernels/selected)

c is the query latent of MLA, of GQA x itself; both are detached, so the indexer learns from its
own loss, KL(attention ‖ softmax I), and moves nothing else. DeepSeek-V3.2, arXiv 2512.02556 (whose
Hadamard turn of q_I and k_I, a help to fp8, changes no product and is left out).

Cost a layer: I takes 2·J·I flops a pair of tokens, of which J·I is small beside N·H; attention
4·N·H flops for each of L · keys pairs; the loss as much once more. Over a cache the keys k_I are
kept: I numbers a token.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.kernels import index as kernels
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.matmul import matmul
from r1jax.kernels.selected import selected_attention
from r1jax.model.cache import Held
from r1jax.model.config import GQA, MLA, Indexer, TopK, Watched
from r1jax.model.primitives import norm_scale, weight
from r1jax.model.rope import rotate
from r1jax.model.types import Kept, Place, Term

FEW = 512  # memory whose chosen keys are a mask: gathering them costs more


class Marks(NamedTuple):
  """What the indexer makes of each token."""

  q_BLJI: jax.Array
  k_BLI: jax.Array
  w_BLJ: jax.Array


class LightningIndexer(nn.Module):
  """Queries, keys and head weights of a layer's tokens; `cfg` is the attention's."""

  cfg: MLA | GQA

  @nn.compact
  def __call__(self, x_BLD: jax.Array, q_in_BLR: jax.Array, place: Place) -> Marks:
    c, w = self.cfg.pattern.indexer, functools.partial(weight, self)
    (D, R), (J, I) = (x_BLD.shape[-1], q_in_BLR.shape[-1]), (c.heads, c.head)
    x_BLD, q_in_BLR = jax.lax.stop_gradient((x_BLD, q_in_BLR))
    turn = functools.partial(_turned, self.cfg, place)
    q_name = 'embed' if R == D else 'latent'
    q_BLJI = matmul('BLR,RNH->BLNH', q_in_BLR, w('q', (R, J, I), (q_name, None, None)))
    k_BLI = matmul('BLD,DR->BLR', x_BLD, w('k', (D, I), ('embed', None)))
    bias_I = w('k_bias', (I,), (None,), nn.initializers.zeros)
    k_BLI = layer_norm(k_BLI, norm_scale(self, 'k_scale', I), bias_I)
    w_BLJ = matmul('BLD,DN->BLN', x_BLD, w('weight', (D, J), ('embed', None)))
    return Marks(turn(q_BLJI), turn(k_BLI[:, :, None])[:, :, 0], w_BLJ * (J * I) ** -0.5)


def _turned(cfg: MLA | GQA, place: Place, x_BLJI: jax.Array) -> jax.Array:
  indexer: Indexer = cfg.pattern.indexer
  rotary = dataclasses.replace(cfg.rotary, interleaved=indexer.interleaved)
  turned = rotate(x_BLJI[..., : indexer.rope], place.positions_BL, rotary)
  return jnp.concatenate([turned, x_BLJI[..., indexer.rope :]], -1)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-6) -> jax.Array:
  """Zero mean and unit variance over the last axis, in fp32."""
  x32 = x.astype(jnp.float32)
  x32 -= x32.mean(-1, keepdims=True)
  y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return (y * scale + bias).astype(x.dtype)


class Attended(NamedTuple):
  """What a query attends to: its heads, keys and values, and where both stand.

  v_BMKV None: a value is the first `width` numbers of its key (absorbed MLA).
  """

  q_BLNH: jax.Array
  k_BMKH: jax.Array
  v_BMKV: jax.Array | None
  width: int
  scale: float
  queries: Tokens
  keys: Tokens


def indexed(cfg: MLA | GQA, x_BLD: jax.Array, q_in: jax.Array, place: Place) -> Marks | None:
  """The layer's indexer at work, called inside the attention; None where its pattern has none."""
  if not isinstance(cfg.pattern, TopK | Watched):
    return None
  return LightningIndexer(cfg, name='indexer')(x_BLD, q_in, place)


def places(place: Place, memory: int | None = None) -> tuple[Tokens, Tokens]:
  """Where queries and keys stand: in their rows, or over a memory at their positions."""
  B, L = place.segments_BL.shape
  if memory is None:
    index_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    return (Tokens(index_BL, place.segments_BL),) * 2
  index_BM = jnp.broadcast_to(jnp.arange(memory), (B, memory))
  return Tokens(place.positions_BL, place.segments_BL), Tokens(index_BM, jnp.ones_like(index_BM))


def choose(
  marks: Marks,
  index_BMI: jax.Array,
  at: tuple[Tokens, Tokens],
  place: Place,
  pattern: TopK,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """(places of the chosen keys, −1 for none; the same as `Choices.keys`), or those of a replay."""
  start_BL1 = (at[0].index_BM - place.positions_BL)[..., None]
  if chosen_BLT is not None:
    return jnp.where(chosen_BLT > 0, chosen_BLT - 1 + start_BL1, -1), chosen_BLT
  ids_BLT = kernels.top_k(marks.q_BLJI, index_BMI, marks.w_BLJ, *at, pattern.keys)
  return ids_BLT, jnp.where(ids_BLT < 0, 0, ids_BLT - start_BL1 + 1)


def over_batch(
  a: Attended,
  masked: Callable[[jax.Array], jax.Array],
  marks: Marks,
  place: Place,
  pattern: TopK,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, Kept]:
  """Attention of a batch over itself; chosen_BLT: choices to replay."""
  at = a.queries, a.keys
  ids_BLT, chosen_BLT = choose(marks, marks.k_BLI, at, place, pattern, chosen_BLT)
  return selected(a, ids_BLT, masked), Kept(None, chosen_BLT, loss(marks, a, ids_BLT))


def over_memory(
  a: Attended,
  masked: Callable[[jax.Array], jax.Array],
  marks: Marks,
  held: Held,
  place: Place,
  pattern: TopK,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """The same over a memory: (o_BLNV, keys chosen)."""
  at = a.queries, a.keys
  ids_BLT, chosen_BLT = choose(marks, held.memory.index_nBMI, at, place, pattern, chosen_BLT)
  return selected(a, ids_BLT, masked), chosen_BLT


def watching(
  marks: Marks | None, q_BLNH: jax.Array, k_BLKH: jax.Array, scale: float, place: Place
) -> Term | None:
  """The indexer's loss while the layer sees everything; None where there is no indexer."""
  if marks is None:
    return None
  return loss(marks, Attended(q_BLNH, k_BLKH, None, 0, scale, *places(place)), None)


def selected(
  a: Attended, ids_BLA: jax.Array, masked: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """o_BLNV over the chosen keys; masked(mask_BLM) is the same attention under a mask."""
  M = a.k_BMKH.shape[1]
  if M <= FEW:
    return masked(listed(ids_BLA, M))
  width = a.width if a.v_BMKV is None else None
  given = a.q_BLNH, a.k_BMKH, a.v_BMKV, ids_BLA[:, :, None], 1
  return selected_attention(*given, a.queries, a.keys, a.scale, value_width=width)[0]


def listed(ids_BLA: jax.Array, length: int) -> jax.Array:
  """mask_BLM of the places that each query lists."""
  B, L, _ = ids_BLA.shape
  at = jnp.arange(B)[:, None, None], jnp.arange(L)[None, :, None]
  there_BLA = jnp.where(ids_BLA < 0, length, ids_BLA)
  return jnp.zeros((B, L, length), bool).at[*at, there_BLA].set(True, mode='drop')


def loss(marks: Marks, a: Attended, ids_BLA: jax.Array | None) -> Term:
  """(Σ KL(p ‖ softmax I), tokens) over the chosen keys; None: over all that are seen."""
  given = a.q_BLNH, a.k_BMKH, a.scale, marks.q_BLJI, marks.k_BLI, marks.w_BLJ, a.queries, a.keys
  if ids_BLA is None:
    return Term(*kernels.kl_dense(*given))
  return Term(*kernels.kl_selected(*given, ids_BLA))
