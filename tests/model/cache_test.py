"""Caches: shapes, writing by position, and that decoding does not copy them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.engine.generate import decode
from r1jax.model import cache as caches
from r1jax.model.cache import KVCache, LatentCache
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs

LATENT = Layer(MLA(4, nope=16, rope=16, value=16, kv_latent=64), Dense(32))
GROUPED = Layer(GQA(4, kv_heads=2, head=32), Dense(32))


def test_one_stack_a_run_and_block():
  cfg = ModelConfig(8, 8, (LATENT,) * 4 + (GROUPED, LATENT) * 3, dtype='bfloat16')
  cache = caches.empty(cfg, batch=2, length=5)
  latent = lambda n: LatentCache((n, 2, 5, 80))
  heads = (3, 2, 5, 2, 32)
  assert jax.tree.map(jnp.shape, cache) == ((latent(4),), (KVCache(heads, heads), latent(3)))
  assert {x.dtype.name for x in jax.tree.leaves(cache)} == {'bfloat16'}


def test_update_writes_one_layer_by_position_and_drops_what_is_beyond():
  cache = LatentCache(jnp.zeros((2, 2, 4, 1)))
  new = LatentCache(jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]]))
  got, held = caches.update(cache, jnp.int32(1), jnp.array([[0, 2], [3, 4]]), new)
  want = np.array([[1, 0, 2, 0], [0, 0, 0, 3]])
  np.testing.assert_array_equal(got.kv_nBMC[..., 0], [np.zeros((2, 4)), want])
  np.testing.assert_array_equal(held.kv_nBMC[..., 0], want)


@pytest.mark.parametrize('layer', [LATENT, GROUPED], ids=['MLA', 'GQA'])
def test_decode_temporaries_stay_below_a_tenth_of_the_cache(layer):
  cfg, batch = ModelConfig(64, 32, (layer,) * 16, remat='none'), 8
  init = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), dummy_inputs(cfg))
  params = meta.unbox(init['params'])
  cache = jax.eval_shape(lambda: caches.empty(cfg, batch, 2048))
  ids_B, live_B = (jax.ShapeDtypeStruct((batch,), t) for t in (jnp.int32, jnp.bool_))
  step = jax.jit(
    lambda params, token, position, live, cache: decode(params, cfg, token, position, live, cache),
    donate_argnums=4,
  )
  memory = step.lower(params, ids_B, ids_B, live_B, cache).compile().memory_analysis()
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert memory.alias_size_in_bytes == size  # all of it is updated in place
  assert 0 < memory.temp_size_in_bytes < size / 10
