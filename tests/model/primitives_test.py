"""Weights, norms and SwiGLU against numpy in float64."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.qarray import Adapted
from r1jax.model.config import Dense
from r1jax.model.primitives import SwiGLU, rms_norm, swiglu

D, F = 6, 10
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, D))
GATE, UP, DOWN = (RNG.normal(size=s) for s in ((D, F), (D, F), (F, D)))
WANT = (X @ GATE / (1 + np.exp(-X @ GATE)) * (X @ UP)) @ DOWN


def test_rms_norm():
  scale = RNG.normal(size=D)
  got = rms_norm(jnp.asarray(X, jnp.float32), jnp.asarray(scale, jnp.float32), 0.1)
  want = X / np.sqrt((X * X).mean(-1, keepdims=True) + 0.1) * scale
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_fp32():
  x_D = jnp.full(1024, 1 + 2**-7, jnp.bfloat16)  # in bfloat16 the squares' sum stops at 256
  got = rms_norm(x_D, jnp.ones(1024), 1e-6)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype(jnp.float32), np.ones(1024))


def test_swiglu():
  f32 = [jnp.asarray(a, jnp.float32) for a in (X, GATE, UP, DOWN)]
  np.testing.assert_allclose(swiglu(*f32), WANT, rtol=1e-4, atol=1e-5)


def test_a_weight_has_its_shape_axes_dtype_and_deviation():
  boxed = SwiGLU(Dense(2000, std=0.02)).init(jax.random.key(0), jnp.ones((1, 1, 50)))['params']
  names = {k: v.names for k, v in boxed.items()}
  assert names == {'gate': ('embed', 'ffw'), 'up': ('embed', 'ffw'), 'down': ('ffw', 'embed')}
  params = nn.meta.unbox(boxed)
  assert {k: (v.shape, v.dtype) for k, v in params.items()} == {
    'gate': ((50, 2000), jnp.float32),
    'up': ((50, 2000), jnp.float32),
    'down': ((2000, 50), jnp.float32),
  }
  np.testing.assert_allclose([v.std() for v in params.values()], 0.02, rtol=0.02)


def test_the_module_is_the_function():
  params = {k: jnp.asarray(v, jnp.float32) for k, v in (('gate', GATE), ('up', UP), ('down', DOWN))}
  got = SwiGLU(Dense(F)).apply({'params': params}, jnp.asarray(X, jnp.float32))
  np.testing.assert_allclose(got, WANT, rtol=1e-4, atol=1e-5)


class Composite:
  """A leaf of several arrays, of which Linen sees but the first."""

  def __init__(self, values, shape):
    self.values, self.shape = values, shape


jax.tree_util.register_pytree_node(
  Composite, lambda c: ((c.values,), c.shape), lambda shape, c: Composite(c[0], shape)
)


def test_a_composite_leaf_of_another_shape_is_refused_by_name():
  leaf = Composite(jnp.zeros((D, F)), (D, F + 1))
  params = {'gate': leaf, 'up': jnp.asarray(UP), 'down': jnp.asarray(DOWN)}
  with pytest.raises(ValueError, match=r'weight gate has shape \(6, 11\), .* asks for \(6, 10\)'):
    SwiGLU(Dense(F)).apply({'params': params}, jnp.asarray(X))


def test_a_plain_leaf_of_another_shape_is_refused():
  params = {'gate': jnp.asarray(GATE.T), 'up': jnp.asarray(UP), 'down': jnp.asarray(DOWN)}
  with pytest.raises(flax.errors.ScopeParamShapeError, match='gate'):
    SwiGLU(Dense(F)).apply({'params': params}, jnp.asarray(X))


def test_adapters_that_do_not_fit_their_weight_are_refused_by_name():
  params = {'gate': jnp.asarray(GATE), 'up': jnp.asarray(UP), 'down': jnp.asarray(DOWN)}
  wrong = Adapted(params['gate'], jnp.zeros((D, 2)), jnp.zeros((2, F + 1)), 1.0)
  with pytest.raises(
    ValueError, match=r'weight gate .*\(6, 10\) has adapters .*\(6, 2\) and \(2, 11'
  ):
    SwiGLU(Dense(F)).apply({'params': params | {'gate': wrong}}, jnp.asarray(X))
  swapped = Adapted(params['down'], jnp.zeros((F, 2)), jnp.zeros((2, D)), 1.0)
  with pytest.raises(flax.errors.ScopeParamShapeError, match='gate'):  # Linen sees the base
    SwiGLU(Dense(F)).apply({'params': params | {'gate': swapped}}, jnp.asarray(X))
