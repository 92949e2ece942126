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
from r1jax.model import indexer, pool
from r1jax.model.attend import over_batch, over_memory
from r1jax.model.config import GQA, TopK
from r1jax.model.indexer import Attended, indexed
from r1jax.model.keys import Marks, entry, marks, weighed
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.rope import rotate, softmax_scale
from r1jax.model.types import Kept, Place


def projected(module: nn.Module, x_BLD: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
  """Heads of queries, keys or values, x W (+ b), by weights of the module."""
  c, w = module.cfg, functools.partial(weight, module)
  w_DNH = w(name, (x_BLD.shape[-1], heads, c.head), ('embed', axis, 'head'))
  y_BLNH = matmul('BLD,DNH->BLNH', x_BLD, w_DNH)
  if c.bias:
    bias_NH = w(f'{name}_bias', (heads, c.head), (axis, 'head'), nn.initializers.zeros)
    y_BLNH = y_BLNH + bias_NH.astype(y_BLNH.dtype)
  return y_BLNH


class GroupedQueryAttention(nn.Module):
  """GQA over the batch itself, or over the cache when one is given."""

  cfg: GQA

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    place: Place,
    cache: caches.Cache | None,
    chosen_BLT: jax.Array | None = None,
  ) -> tuple[jax.Array, Kept]:
    c, D, w = self.cfg, x_BLD.shape[-1], functools.partial(weight, self)
    project = functools.partial(projected, self, x_BLD)
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
    index = indexed(c, x_BLD, x_BLD, place)
    if cache is None:
      o_BLNH, kept = over_itself(c, q_BLNH, k_BLKH, v_BLKH, place, marked, index, chosen_BLT)
    else:
      entries = caches.KVCache(k_BLKH, v_BLKH, entry(marked, x_BLD.dtype), index and index.k_BLI)
      o_BLNH, kept = over_cache(c, q_BLNH, cache, entries, place, marked, index, chosen_BLT)
    out = w('out', (c.heads, c.head, D), ('heads', 'head', 'embed'))
    return matmul('BLNH,NHD->BLD', o_BLNH, out), kept


def over_itself(
  c: GQA,
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKH: jax.Array,
  place: Place,
  marked: Marks,
  index: indexer.Marks | None,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, Kept]:
  """Attention of a batch over itself."""
  scale = softmax_scale(c.rotary, c.head)
  if isinstance(c.pattern, TopK):
    a = Attended(q_BLNH, k_BLKH, v_BLKH, c.head, scale, *indexer.places(place))
    masked = lambda mask_BLM: attention(q_BLNH, k_BLKH, v_BLKH, mask_BLM, scale)
    return indexer.over_batch(a, masked, index, place, c.pattern, chosen_BLT)
  o_BLNH = over_batch(q_BLNH, k_BLKH, v_BLKH, place, c.pattern, marked, scale)
  return o_BLNH, Kept(index=indexer.watching(index, q_BLNH, k_BLKH, scale, place))


def over_cache(
  c: GQA,
  q_BLNH: jax.Array,
  cache: caches.Cache,
  entries: caches.KVCache,
  place: Place,
  marked: Marks,
  index: indexer.Marks | None,
  chosen_BLT: jax.Array | None,
) -> tuple[jax.Array, Kept]:
  """Attention over a cache, which takes in the new entries first."""
  scale = softmax_scale(c.rotary, c.head)
  cache = caches.put(cache, place, entries, c.pattern)
  if pool.serves(cache, place, c.pattern):
    chosen = pool.choose(cache, place, c.pattern, index, chosen_BLT)
    o_BLNH = pool.over_pool(q_BLNH, cache, place, c.pattern, marked, scale, None, chosen)
    return o_BLNH, Kept(cache, chosen)
  held = caches.look(cache, place, entries)
  k_BMKH, v_BMKH, *_ = held.memory
  masked = lambda mask_BLM: attention(q_BLNH, k_BMKH, v_BMKH, mask_BLM, scale)
  if isinstance(c.pattern, TopK):
    a = Attended(q_BLNH, k_BMKH, v_BMKH, c.head, scale, *indexer.places(place, k_BMKH.shape[1]))
    o_BLNH, chosen = indexer.over_memory(a, masked, index, held, place, c.pattern, chosen_BLT)
    return o_BLNH, Kept(cache, chosen)
  return over_memory(masked, place, held, k_BMKH.shape[1], c.pattern, marked), Kept(cache)
