"""One block: pre-norm residuals, and every pair of types dispatched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.model.block import Block
from r1jax.model.config import GQA, MLA, Dense, Layer, MoE
from r1jax.model.gqa import GroupedQueryAttention
from r1jax.model.mla import LatentAttention
from r1jax.model.moe import MixtureOfExperts
from r1jax.model.primitives import SwiGLU
from r1jax.model.types import Choices, LayerIn, Place

L, D, EPS = 3, 8, 0.1
X = np.random.default_rng(0).normal(size=(1, L, D)).astype('f4')
PLACE = Place(jnp.arange(L)[None], jnp.ones((1, L), jnp.int32))
GROUPED, LATENT = GQA(2, 1, 4, std=0.5), MLA(2, 4, 2, 4, 6, std=0.5)
DENSE, EXPERTS = Dense(6, std=0.5), MoE(6, experts=4, active=2, std=0.5)


def norm(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale


def drawn(block):
  """Normal numbers for every parameter."""
  init = jax.eval_shape(block.init, jax.random.key(0), X, PLACE, LayerIn())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
  return jax.tree.map(draw, meta.unbox(init)['params'])


@pytest.mark.parametrize(
  'attention, attend, mlp',
  [(GROUPED, GroupedQueryAttention, EXPERTS), (LATENT, LatentAttention, DENSE)],
  ids=['GQA, MoE', 'MLA, Dense'],
)
def test_a_block_adds_attention_then_the_feed_forward(attention, attend, mlp):
  block = Block(Layer(attention, mlp, EPS))
  p = drawn(block)
  got, out = jax.jit(block.apply)({'params': p}, X, PLACE, LayerIn())
  apply = lambda module, name, *args: jax.jit(module.apply)({'params': p[name]}, *args)
  h = norm(X, p['attention_scale'])
  x = X + apply(attend(attention), 'attention', h, PLACE, None)[0]
  h = norm(x, p['mlp_scale'])
  if mlp is DENSE:
    want = x + apply(SwiGLU(mlp), 'mlp', h)
    assert (out.routes.experts, out.load_E, out.balance, out.cache) == (None,) * 4
  else:
    y, made = apply(MixtureOfExperts(mlp), 'mlp', h, PLACE, None)
    want = x + y
    np.testing.assert_array_equal(out.routes.experts, made.routes.experts)
    np.testing.assert_array_equal(out.load_E, made.load_E)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_given_routes_are_taken():
  block, routes = Block(Layer(GROUPED, EXPERTS, EPS)), jnp.array([[[0, 1], [2, 3], [3, 0]]])
  given = LayerIn(routes=Choices(routes))
  _, out = jax.jit(block.apply)({'params': drawn(block)}, X, PLACE, given)
  np.testing.assert_array_equal(out.routes.experts, routes)
  np.testing.assert_array_equal(out.load_E, [2, 1, 1, 2])
