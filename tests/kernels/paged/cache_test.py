"""Over the engine's cache, lists of pages give what gathering all of it and a mask give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention import attention, latent_attention
from r1jax.kernels.paged import paged_attention
from r1jax.kernels.paged.visible import visible_full, visible_ring, visible_window
from r1jax.model import cache as caches
from r1jax.model import masks
from r1jax.model.config import GQA, MLA, Dense, Full, Layer, ModelConfig, Window
from r1jax.model.types import Place

B, L, SIZE, T, RING = 3, 3, 4, 5, 8
NEWEST = np.int32([[4, 5, 6], [0, 1, 2], [15, 16, 17]])
LATENT = MLA(2, 4, 4, 6, 8, 5)
WHOLE, LOCAL = GQA(4, 2, 6), GQA(4, 2, 6, pattern=Window(5))


def entries(rng, spec, length):
  """What the projections would give: queries, and keys and values or latents."""
  draw = lambda *shape: jnp.asarray(rng.normal(size=(B, length, *shape)), jnp.float32)
  if isinstance(spec, MLA):
    C = spec.kv_latent + spec.rope
    return draw(spec.heads, C), caches.LatentCache(draw(C))
  k, v = (draw(spec.kv_heads, spec.head) for _ in 'kv')
  return draw(spec.heads, spec.head), caches.KVCache(k, v)


def filled(rng, spec, dtype, ring, table):
  """A cache of NaN all over with the rows' positions before the last L."""
  cfg = ModelConfig(8, 8, (Layer(spec, Dense(8)),) * 2)
  fill = lambda x: jnp.full_like(x, jnp.nan if x.dtype != jnp.int8 else 99)
  cache = jax.tree.map(fill, caches.paged(cfg, B * T, SIZE, dtype, B, ring)[0][0])
  put = jax.jit(caches.put)
  for at in range(0, NEWEST.max(), L):
    positions = np.int32(at + np.arange(L) + np.zeros((B, 1)))
    place = Place(positions, np.int32(positions < NEWEST[:, :1]), jnp.int32(1), table)
    cache = put(cache, place, entries(rng, spec, L)[1])
  return cache


@pytest.mark.parametrize(
  'spec, ring, dtype',
  [
    (LATENT, 0, None),
    (LATENT, 0, 'bfloat16'),
    (LATENT, 0, 'int8'),
    (WHOLE, 0, None),
    (LOCAL, 0, 'int8'),
    (LOCAL, RING, None),
    (LOCAL, RING, 'int8'),
  ],
)
def test_three_queries_a_row(spec, ring, dtype):
  rng = np.random.default_rng(0)
  table = rng.permutation(B * T).reshape(B, T).astype('i4')
  cache = filled(rng, spec, dtype, ring, table)
  q, new = entries(rng, spec, L)
  place = Place(NEWEST, np.ones((B, L), 'i4'), jnp.int32(1), table)
  cache = caches.put(cache, place, new)
  held = caches.look(cache, place, new)
  pattern = Full() if isinstance(spec, MLA) else spec.pattern
  memory = held.memory
  M = memory[0].shape[1]
  mask = masks.over_cache(NEWEST, place.segments_BL, M, pattern, held.positions_BM)
  if isinstance(spec, MLA):
    want = latent_attention(q, memory.kv_nBMC, mask, 0.3)[..., : spec.kv_latent]
  else:
    want = attention(q, memory.key_nBMKH, memory.value_nBMKH, mask, 0.3)

  rows = lambda x: jnp.repeat(x, L, 0)
  newest = NEWEST.reshape(-1)
  if ring:
    visible = visible_ring(rows(np.arange(B)), newest, RING, SIZE, pattern.window)
  elif pattern == Full():
    visible = visible_full(rows(table), newest, SIZE)
  else:
    visible = visible_window(rows(table), newest, SIZE, pattern.window)
  keys, values = _stacks(cache, ring)
  width = spec.kv_latent if isinstance(spec, MLA) else None
  o, _ = paged_attention(q.reshape(B * L, *q.shape[2:]), keys, values, 1, visible, 0.3, width)
  np.testing.assert_allclose(o.reshape(want.shape), want, rtol=1e-5, atol=1e-5)


def _stacks(cache, ring):
  """Keys and values as the op takes them; a ring's places as pages of SIZE."""
  paged = lambda x: x.reshape(len(x), -1, SIZE, *x.shape[3:]) if ring else x
  arrays = jax.tree.map(paged, cache.arrays)
  return arrays if len(arrays) == 2 else (arrays[0], None)
