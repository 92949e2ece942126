"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; V3, 2412.19437).

    c_q = norm(x W_qdown)          q = c_q W_qup = [q_nope; rotate(q_rope)]       (or q = x W_q)
    [c_kv; k_rope] = x W_kvdown    c_kv = norm(c_kv), k_rope = rotate(k_rope), one for all heads
    k = [c_kv W_kup; k_rope],  v = c_kv W_vup,   o = softmax(q kᵀ · scale) v,   y = o W_o

Two executions of one parameter set. *Expanded* makes keys and values (training, prefill):
2·B·N·L·M·(H+P+V) flops, and 2·B·N·M·R·(H+V) to make them. *Absorbed* moves W_kup into the query
and W_vup behind the sum (decode): q_nope W_kupᵀ meets the latents themselves, 4·B·N·L·M·(R+P) flops
but only R+P numbers a token are read. One query is absorbed; over pages so are as many as make it
the cheaper one (drafts to verify, short chunks of a prompt).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.core.qarray import Weight
from r1jax.kernels.attention import attention, latent_attention
from r1jax.kernels.matmul import matmul
from r1jax.model import cache as caches
from r1jax.model import indexer, pool
from r1jax.model.attend import over_batch, over_memory
from r1jax.model.config import MLA, TopK
from r1jax.model.indexer import Attended, indexed
from r1jax.model.keys import Marks, entry, marks, weighed
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.rope import rotate, softmax_scale
from r1jax.model.types import Kept, Place


class Query(NamedTuple):
  """Per head: the part that meets the latent, and the rotated part."""

  nope_BLNH: jax.Array
  rope_BLNP: jax.Array


class Up(NamedTuple):
  """What makes keys and values of latents."""

  k_RNH: Weight
  v_RNV: Weight


def keys_and_values(
  kv_BMC: jax.Array, k_up_RNH: jax.Array, v_up_RNV: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Keys and values made from the latents; kv_BMC is [latent; rotated key]."""
  latent_BMR, rope_BMP = jnp.split(kv_BMC, [k_up_RNH.shape[0]], -1)
  k_BMNH = matmul('BMR,RNH->BMNH', latent_BMR, k_up_RNH)
  v_BMNV = matmul('BMR,RNV->BMNV', latent_BMR, v_up_RNV)
  rope_BMNP = jnp.broadcast_to(rope_BMP[:, :, None], (*k_BMNH.shape[:3], rope_BMP.shape[-1]))
  return jnp.concatenate([k_BMNH, rope_BMNP], -1), v_BMNV


def expanded(
  q: Query,
  kv_BMC: jax.Array,
  mask_BLM: jax.Array,
  k_up_RNH: jax.Array,
  v_up_RNV: jax.Array,
  scale: float,
) -> jax.Array:
  """Attention over the keys and values themselves."""
  made = keys_and_values(kv_BMC, k_up_RNH, v_up_RNV)
  return attention(jnp.concatenate(q, -1), *made, mask_BLM, scale)


def absorbed(
  q: Query,
  kv_BMC: jax.Array,
  mask_BLM: jax.Array,
  k_up_RNH: jax.Array,
  v_up_RNV: jax.Array,
  scale: float,
) -> jax.Array:
  """The same numbers with the memory as the one key-value head; the value's last P are dropped."""
  o_BLNC = latent_attention(to_latents(q, k_up_RNH), kv_BMC, mask_BLM, scale)
  return matmul('BLNR,RNV->BLNV', o_BLNC[..., : k_up_RNH.shape[0]], v_up_RNV)


def to_latents(q: Query, k_up_RNH: jax.Array) -> jax.Array:
  """Queries that meet latents and rotated keys as they are."""
  return jnp.concatenate([matmul('BLNH,RNH->BLNR', q.nope_BLNH, k_up_RNH), q.rope_BLNP], -1)


def absorbed_is_cheaper(cfg: MLA, queries: int, memory: int) -> bool:
  """Whether L queries over a memory of M take fewer flops absorbed than expanded.

  L·R·(H+V) + 2·L·M·(R+P) < M·R·(H+V) + L·M·(H+P+V): for V3 and a long memory up to 157 queries.
  """
  c, L, M = cfg, queries, memory
  up = c.kv_latent * (c.nope + c.value)
  few = L * up + 2 * L * M * (c.kv_latent + c.rope)
  return few < M * up + L * M * (c.nope + c.rope + c.value)


class LatentAttention(nn.Module):
  """MLA over the batch itself, or over the cache when one is given."""

  cfg: MLA

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    place: Place,
    cache: caches.Cache | None,
    chosen_BLT: jax.Array | None = None,
  ) -> tuple[jax.Array, Kept]:
    c, D, w = self.cfg, x_BLD.shape[-1], functools.partial(weight, self)
    q_in, width, name = x_BLD, D, 'embed'
    if c.q_latent:
      q_in = matmul('BLD,DR->BLR', x_BLD, w('q_down', (D, c.q_latent), ('embed', 'latent')))
      q_in = rms_norm(q_in, norm_scale(self, 'q_scale', c.q_latent), c.eps)
      width, name = c.q_latent, 'latent'
    q_up = w('q_up', (width, c.heads, c.nope + c.rope), (name, 'heads', 'head'))
    q_BLNH = matmul('BLR,RNH->BLNH', q_in, q_up)
    q = Query(q_BLNH[..., : c.nope], rotate(q_BLNH[..., c.nope :], place.positions_BL, c.rotary))
    kv_down = w('kv_down', (D, c.kv_latent + c.rope), ('embed', 'latent'))
    kv_BLR = matmul('BLD,DR->BLR', x_BLD, kv_down)
    latent = rms_norm(kv_BLR[..., : c.kv_latent], norm_scale(self, 'kv_scale', c.kv_latent), c.eps)
    marked = marks(self, x_BLD, place)
    latent = weighed(latent, marked)
    k_rope = rotate(kv_BLR[:, :, None, c.kv_latent :], place.positions_BL, c.rotary)[:, :, 0]
    up = Up(
      w('k_up', (c.kv_latent, c.heads, c.nope), ('latent', 'heads', 'head')),
      w('v_up', (c.kv_latent, c.heads, c.value), ('latent', 'heads', 'head')),
    )
    kv_BMC = jnp.concatenate([latent, k_rope], -1)
    index = indexed(c, x_BLD, q_in, place)
    if cache is None:
      o_BLNV, kept = over_itself(c, q, kv_BMC, up, place, marked, index, chosen_BLT)
    else:
      entries = caches.LatentCache(kv_BMC, entry(marked, x_BLD.dtype), index and index.k_BLI)
      o_BLNV, kept = over_cache(c, q, cache, entries, up, place, marked, index, chosen_BLT)
    return matmul(
      'BLNV,NVD->BLD', o_BLNV, w('out', (c.heads, c.value, D), ('heads', 'head', 'embed'))
    ), kept


def over_itself(
  c: MLA,
  q: Query,
  kv_BLC: jax.Array,
  up: Up,
  place: Place,
  marked: Marks,
  index: indexer.Marks | None,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, Kept]:
  """Attention of a batch over itself; over chosen keys it is absorbed, for they are gathered."""
  scale = softmax_scale(c.rotary, c.nope + c.rope)
  if isinstance(c.pattern, TopK):
    a = latent(c, q, kv_BLC, up, place)
    masked = lambda mask_BLM: latent_attention(a.q_BLNH, kv_BLC, mask_BLM, scale)
    o_BLNC, kept = indexer.over_batch(a, masked, index, place, c.pattern, chosen_BLT)
    return values(c, o_BLNC, up), kept
  made, queries = keys_and_values(kv_BLC, *up), jnp.concatenate(q, -1)
  o_BLNV = over_batch(queries, *made, place, c.pattern, marked, scale)
  return o_BLNV, Kept(index=indexer.watching(index, queries, made[0], scale, place))


def over_cache(
  c: MLA,
  q: Query,
  cache: caches.Cache,
  entries: caches.LatentCache,
  up: Up,
  place: Place,
  marked: Marks,
  index: indexer.Marks | None,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, Kept]:
  """Attention over a cache, which takes in the new entries first."""
  scale, L = softmax_scale(c.rotary, c.nope + c.rope), q.nope_BLNH.shape[1]
  cache = caches.put(cache, place, entries, c.pattern)
  if pool.serves(cache, place, c.pattern):
    chosen = pool.choose(cache, place, c.pattern, index, chosen_BLT)
    told = cache, place, c.pattern, marked, scale, c.kv_latent, chosen
    return values(c, pool.over_pool(to_latents(q, up.k_RNH), *told), up), Kept(cache, chosen)
  held = caches.look(cache, place, entries)
  kv_BMC, M = held.memory.kv_nBMC, held.memory.kv_nBMC.shape[1]
  if isinstance(c.pattern, TopK):
    a = latent(c, q, kv_BMC, up, place, M)
    masked = lambda mask_BLM: latent_attention(a.q_BLNH, kv_BMC, mask_BLM, scale)
    o_BLNC, chosen = indexer.over_memory(a, masked, index, held, place, c.pattern, chosen_BLT)
    return values(c, o_BLNC, up), Kept(cache, chosen)
  # A dense cache meets a whole prompt, which is expanded as in training, or one token.
  short = L == 1 or (place.table_BT is not None and absorbed_is_cheaper(c, L, M))
  execution = absorbed if short else expanded
  masked = lambda mask_BLM: execution(q, kv_BMC, mask_BLM, *up, scale)
  return over_memory(masked, place, held, M, c.pattern, marked), Kept(cache)


def latent(
  c: MLA, q: Query, kv_BMC: jax.Array, up: Up, place: Place, memory: int | None = None
) -> Attended:
  """Absorbed attention: the latents are the one head's keys, and in part its values."""
  scale, at = softmax_scale(c.rotary, c.nope + c.rope), indexer.places(place, memory)
  return Attended(to_latents(q, up.k_RNH), kv_BMC[:, :, None], None, c.kv_latent, scale, *at)


def values(c: MLA, o_BLNC: jax.Array, up: Up) -> jax.Array:
  """Sums of latents as sums of values."""
  return matmul('BLNR,RNV->BLNV', o_BLNC[..., : c.kv_latent], up.v_RNV)
