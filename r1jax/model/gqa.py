"""Grouped-query attention (arXiv 2305.13245) with rotary embedding: Llama 3, Qwen, Mistral.

q, k, v = x W_q, x W_k, x W_v (+ b)
q, k = rotate(norm(q)), rotate(norm(k));   y = attention(q, k, v) W_o
"""

import functools

import flax.linen as nn
import jax

from r1jax.kernels.attention import attention
from r1jax.kernels.matmul import matmul
from r1jax.model import cache as caches
from r1jax.model import pool
from r1jax.model.attend import over_batch, over_memory
from r1jax.model.config import GQA
from r1jax.model.keys import entry, marks, weighed
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.rope import rotate, softmax_scale
from r1jax.model.types import Place


class GroupedQueryAttention(nn.Module):
  """GQA over the batch itself, or over the cache when one is given."""

  cfg: GQA

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, place: Place, cache: caches.Cache | None
  ) -> tuple[jax.Array, caches.Cache | None]:
    c, D, w = self.cfg, x_BLD.shape[-1], functools.partial(weight, self)

    def project(name: str, heads: int, axis: str) -> jax.Array:
      y = matmul('BLD,DNH->BLNH', x_BLD, w(name, (D, heads, c.head), ('embed', axis, 'head')))
      if c.bias:
        bias = w(f'{name}_bias', (heads, c.head), (axis, 'head'), nn.initializers.zeros)
        y = y + bias.astype(y.dtype)
      return y

    q_BLNH, k_BLKH, v_BLKH = (
      project('q', c.heads, 'heads'),
      *(project(n, c.kv_heads, 'kv_heads') for n in 'kv'),
    )
    if c.qk_norm:
      q_BLNH = rms_norm(q_BLNH, norm_scale(self, 'q_scale', c.head), c.eps)
      k_BLKH = rms_norm(k_BLKH, norm_scale(self, 'k_scale', c.head), c.eps)
    q_BLNH, k_BLKH = (rotate(x, place.positions_BL, c.rotary) for x in (q_BLNH, k_BLKH))
    marked = marks(self, x_BLD, place)
    v_BLKH = weighed(v_BLKH, marked)
    scale = softmax_scale(c.rotary, c.head)
    if cache is None:
      o_BLNH = over_batch(q_BLNH, k_BLKH, v_BLKH, place, c.pattern, marked, scale)
    else:
      entries = caches.KVCache(k_BLKH, v_BLKH, entry(marked, x_BLD.dtype))
      cache = caches.put(cache, place, entries, c.pattern)
      if pool.serves(cache, place, c.pattern):
        o_BLNH = pool.over_pool(q_BLNH, cache, place, c.pattern, marked, scale)
      else:
        held = caches.look(cache, place, entries)
        k_BMKH, v_BMKH, _ = held.memory
        attend = lambda mask_BLM: attention(q_BLNH, k_BMKH, v_BMKH, mask_BLM, scale)
        o_BLNH = over_memory(attend, place, held, k_BMKH.shape[1], c.pattern, marked)
    out = w('out', (c.heads, c.head, D), ('heads', 'head', 'embed'))
    return matmul('BLNH,NHD->BLD', o_BLNH, out), cache
