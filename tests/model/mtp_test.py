"""The prediction module: what is joined in which order, and what comes out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model.block import Block
from r1jax.model.config import GQA, Dense, Layer
from r1jax.model.mtp import PredictionModule
from r1jax.model.types import LayerIn, Place

L, D = 3, 8
SPEC = Layer(GQA(2, 1, 4), Dense(8, std=0.3), eps=1e-3)
RNG = np.random.default_rng(0)
HIDDEN, EMBEDDED = RNG.normal(size=(2, 1, L, D)).astype('f4')
PLACE = Place(jnp.arange(L)[None], jnp.ones((1, L), jnp.int32))


def norm(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * scale


def test_embedding_first_then_one_block_and_a_norm():
  module = PredictionModule(SPEC)
  boxed = module.init(jax.random.key(0), HIDDEN, EMBEDDED, PLACE)
  p = nn.meta.unbox(boxed)['params']
  np.testing.assert_allclose(p['project'].std(), 0.3, rtol=0.2)
  scales = ('embedding_scale', 'hidden_scale', 'out_scale')
  p |= {name: jnp.asarray(RNG.uniform(0.5, 2, D), jnp.float32) for name in scales}
  h, y, out = module.apply({'params': p}, HIDDEN, EMBEDDED, PLACE)
  q = jax.tree.map(np.asarray, p)
  halves = norm(EMBEDDED, q['embedding_scale']), norm(HIDDEN, q['hidden_scale'])
  joined = np.concatenate(halves, -1) @ q['project']
  want = Block(SPEC).apply({'params': p['block']}, joined, PLACE, LayerIn())[0]
  np.testing.assert_allclose(h, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(y, norm(np.asarray(want), q['out_scale']), rtol=1e-5, atol=1e-5)
  assert out.cache is None


def test_the_order_matters():
  module = PredictionModule(SPEC)
  p = module.init(jax.random.key(0), HIDDEN, EMBEDDED, PLACE)
  ways = (HIDDEN, EMBEDDED), (EMBEDDED, HIDDEN)
  a, b = (module.apply(p, *way, PLACE)[0] for way in ways)
  assert np.abs(a - b).max() > 0.1
