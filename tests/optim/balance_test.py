"""The router-bias update against its definition."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.optim.balance import apply, update


def test_closed_form():
  got = update(jnp.array([0.5, -0.5, 0.0, 0.1]), jnp.array([9, 1, 5, 5]), 0.25)
  np.testing.assert_array_equal(got, np.array([0.25, -0.25, 0.0, 0.1], np.float32))
  assert got.dtype == jnp.float32


@given(
  load_NE=hnp.arrays(
    np.int32, st.sampled_from([(1,), (7,), (2, 3, 4)]), elements=st.integers(0, 10**4)
  )
)
def test_moves_against_the_load_by_layer(load_NE):
  got = update(jnp.zeros(load_NE.shape), jnp.asarray(load_NE), 0.001)
  above = load_NE.shape[-1] * load_NE.astype(np.int64) - load_NE.sum(axis=-1, keepdims=True)
  np.testing.assert_array_equal(got, -np.float32(0.001) * np.sign(above))


@given(load=st.floats(0, 1e9, width=32), E=st.sampled_from([1, 7, 256]))
def test_equal_loads_leave_it_exactly_where_it_is(load, E):
  bias_E = jnp.linspace(-1, 1, E)
  np.testing.assert_array_equal(update(bias_E, jnp.full(E, load, jnp.float32), 0.001), bias_E)


def test_gamma_zero_freezes_it_and_gamma_may_be_traced():
  bias_E, load_E = jnp.array([1.0, -2.0]), jnp.array([3, 1])
  np.testing.assert_array_equal(update(bias_E, load_E, 0.0), bias_E)
  np.testing.assert_array_equal(jax.jit(update)(bias_E, load_E, 0.5), [0.5, -1.5])


def params():
  return {
    'run0': {
      'block0': {'moe': {'router': {'weight': jnp.ones((2, 3, 2)), 'bias': jnp.zeros((2, 2))}}}
    },
    'run1': {'block0': {'attention': {'bias': jnp.ones(2)}}},
  }


def test_apply_changes_the_router_biases_and_nothing_else():
  got = apply(params(), {'run0/block0/moe/router/bias': jnp.array([[2, 0], [1, 1]])}, 0.5)
  want = params()
  want['run0']['block0']['moe']['router']['bias'] = np.array([[-0.5, 0.5], [0, 0]])
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_errors_name_what_is_missing():
  load = jnp.ones((2, 2))
  with pytest.raises(ValueError, match=r"without a load: \['run0/block0/moe/router/bias'\]"):
    apply(params(), {}, 0.1)
  with pytest.raises(ValueError, match=r"without a router bias: \['run9/router/bias'\]"):
    apply(params(), {'run0/block0/moe/router/bias': load, 'run9/router/bias': load}, 0.1)
  with pytest.raises(ValueError, match=r'shape \(2,\), its load \(3,\)'):
    update(jnp.zeros(2), jnp.zeros(3), 0.1)
  with pytest.raises(TypeError, match='must be float32'):
    update(jnp.zeros(2, jnp.bfloat16), jnp.zeros(2), 0.1)
