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

from r1jax.kernels.attention import attention, latent_attention
from r1jax.kernels.matmul import matmul
from r1jax.model import cache as caches
from r1jax.model import pool
from r1jax.model.attend import over_batch, over_memory
from r1jax.model.config import MLA
from r1jax.model.keys import entry, marks, weighed
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.rope import rotate, softmax_scale
from r1jax.model.types import Place


class Query(NamedTuple):
  """Per head: the part that meets the latent, and the rotated part."""

  nope_BLNH: jax.Array
  rope_BLNP: jax.Array


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


def latent_query(q: Query, k_up_RNH: jax.Array) -> jax.Array:
  """Queries that meet [latent; rotated key] itself."""
  q_BLNR = matmul('BLNH,RNH->BLNR', q.nope_BLNH, k_up_RNH)
  return jnp.concatenate([q_BLNR, q.rope_BLNP], -1)


def absorbed(
  q: Query,
  kv_BMC: jax.Array,
  mask_BLM: jax.Array,
  k_up_RNH: jax.Array,
  v_up_RNV: jax.Array,
  scale: float,
) -> jax.Array:
  """The same numbers with the memory as the one key-value head; the value's last P are dropped."""
  o_BLNC = latent_attention(latent_query(q, k_up_RNH), kv_BMC, mask_BLM, scale)
  return matmul('BLNR,RNV->BLNV', o_BLNC[..., : k_up_RNH.shape[0]], v_up_RNV)


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
    self, x_BLD: jax.Array, place: Place, cache: caches.Cache | None
  ) -> tuple[jax.Array, caches.Cache | None]:
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
    k_up = w('k_up', (c.kv_latent, c.heads, c.nope), ('latent', 'heads', 'head'))
    v_up = w('v_up', (c.kv_latent, c.heads, c.value), ('latent', 'heads', 'head'))
    scale = softmax_scale(c.rotary, c.nope + c.rope)
    kv_BMC = jnp.concatenate([latent, k_rope], -1)
    if cache is None:
      made = keys_and_values(kv_BMC, k_up, v_up)
      o_BLNV = over_batch(jnp.concatenate(q, -1), *made, place, c.pattern, marked, scale)
    else:
      entries = caches.LatentCache(kv_BMC, entry(marked, x_BLD.dtype))
      cache = caches.put(cache, place, entries, c.pattern)
      if pool.serves(cache, place, c.pattern):
        o_BLNR = pool.over_pool(
          latent_query(q, k_up), cache, place, c.pattern, marked, scale, c.kv_latent
        )
        o_BLNV = matmul('BLNR,RNV->BLNV', o_BLNR, v_up)
      else:
        held, L = caches.look(cache, place, entries), x_BLD.shape[1]
        kv_BMC, M = held.memory.kv_nBMC, held.memory.kv_nBMC.shape[1]
        # A dense cache meets a whole prompt, which is expanded as in training, or one token.
        short = L == 1 or (place.table_BT is not None and absorbed_is_cheaper(c, L, M))
        execution = absorbed if short else expanded
        attend = lambda mask_BLM: execution(q, kv_BMC, mask_BLM, k_up, v_up, scale)
        o_BLNV = over_memory(attend, place, held, M, c.pattern, marked)
    return matmul(
      'BLNV,NVD->BLD', o_BLNV, w('out', (c.heads, c.value, D), ('heads', 'head', 'embed'))
    ), cache
