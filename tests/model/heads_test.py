"""The scalar head: its numbers, its place, and what it sees of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import heads
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place

LAYER = Layer(GQA(2, 1, 8, std=0.3), Dense(16, std=0.3))
CFG = ModelConfig(30, 16, (LAYER,), mtp=(LAYER,), std=0.5, remat='none')


@pytest.fixture(scope='module')
def params():
  head = place.init(Scalar(ScalarConfig(16, 0.5)), jax.random.key(1), None, np.zeros((1, 1, 16)))
  return place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG)) | {'reward': head}


def inputs(tokens):
  tokens_BL = jnp.asarray(tokens, jnp.int32)
  return Inputs(
    tokens_BL, jnp.arange(tokens_BL.shape[1])[None].repeat(len(tokens), 0), tokens_BL * 0 + 1
  )


def test_a_scalar_is_a_dot_product_in_fp32(params):
  x_BLD = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
  head = params['reward'] | {'bias': jnp.float32(0.25)}
  assert head['weight'].shape == (16,) and params['reward']['bias'] == 0
  r_BL = Scalar(ScalarConfig(16)).apply({'params': head}, jnp.asarray(x_BLD, jnp.bfloat16))
  rounded = np.asarray(jnp.asarray(x_BLD, jnp.bfloat16), np.float64)
  assert r_BL.dtype == jnp.float32
  np.testing.assert_allclose(r_BL, rounded @ np.float64(head['weight']) + 0.25, rtol=1e-5)


def test_scores_are_the_head_over_the_models_output(params):
  one = inputs([[3, 5, 7]])
  r_BL, out = heads.scores(params, CFG, 'reward', one)
  x_BLD = Transformer(CFG).apply({'params': params}, one._replace(ahead=(one.tokens_BL,))).x_BLD
  expected = np.float64(x_BLD) @ np.float64(params['reward']['weight'])
  np.testing.assert_allclose(r_BL, expected, rtol=1e-4, atol=1e-5)
  assert out.mtp == ()


def test_no_position_sees_what_comes_later(params):
  a, b = (heads.scores(params, CFG, 'reward', inputs([row]))[0] for row in ([3, 5, 7], [3, 5, 9]))
  np.testing.assert_array_equal(a[:, :2], b[:, :2])
  assert a[0, 2] != b[0, 2]


def test_last_takes_each_rows_own_position():
  r_BL = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(heads.last(r_BL, jnp.array([2, 0])), [2, 3])


def test_the_head_has_a_place_on_a_mesh():
  mesh = meshes.make(meshes.Mesh(data=4, fsdp=2))
  made = place.init(Scalar(ScalarConfig(16)), jax.random.key(1), mesh, np.zeros((1, 1, 16)))
  assert made['weight'].sharding.spec == jax.P('fsdp') and made['bias'].sharding.spec == jax.P()
  alone = place.init(Scalar(ScalarConfig(16)), jax.random.key(1), None, np.zeros((1, 1, 16)))
  np.testing.assert_array_equal(made['weight'], alone['weight'])
