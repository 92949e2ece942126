"""A scanned run: stacked weights, caches in the carry, routes given and returned."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model import stack
from r1jax.model.cache import KVCache
from r1jax.model.config import GQA, Dense, Layer, MoE, Run
from r1jax.model.types import Choices, Place

B, L, M, D = 1, 3, 4, 4
RUN = Run((Layer(GQA(1, 1, 4), Dense(4)), Layer(GQA(1, 1, 2), MoE(4, experts=4, active=2))), 3)
X = np.random.default_rng(0).normal(size=(B, L, D)).astype('f4')
PLACE = Place(jnp.arange(L)[None], jnp.ones((B, L), jnp.int32))
CACHE = tuple(KVCache(*[jnp.zeros((3, B, M, 1, h))] * 2) for h in (4, 2))
ROUTES = jnp.arange(3 * B * L * 2).reshape(3, B, L, 2) % 4


class Model(nn.Module):
  @nn.compact
  def __call__(self, x_BLD, caches, routes):
    return stack.call(stack.stack(RUN, 'full', 'run0'), x_BLD, PLACE, caches, routes)


def test_weights_caches_and_routes_are_stacked_by_layer():
  init = jax.jit(lambda key: Model().init_with_output(key, X, CACHE, (None, Choices(ROUTES))))
  (y_BLD, caches, outs), boxed = init(jax.random.key(0))
  up = boxed['params']['run0']['block0']['mlp']['up']
  assert up.names == ('layers', 'embed', 'ffw')
  assert up.unbox().shape == (3, D, 4)
  rows = up.unbox().reshape(3, -1)
  assert len(np.unique(rows, axis=0)) == 3  # every layer is drawn by itself
  assert y_BLD.shape == X.shape
  for leaf_nBMKH in map(np.asarray, jax.tree.leaves(caches)):
    assert (np.abs(leaf_nBMKH[:, :, :L]).max((1, 2, 3, 4)) > 0).all()
    np.testing.assert_array_equal(leaf_nBMKH[:, :, L:], np.zeros_like(leaf_nBMKH[:, :, L:]))
  assert [out.cache for out in outs] == [None, None]
  assert outs[0].routes.experts is None
  np.testing.assert_array_equal(outs[1].routes.experts, ROUTES)
  counts = [np.bincount(layer.ravel(), minlength=4) for layer in np.asarray(ROUTES)]
  np.testing.assert_array_equal(outs[1].load_E, counts)
