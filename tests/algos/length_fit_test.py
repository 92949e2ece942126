"""Length fit: what remains is counted per segment, and the fit finds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.length_fit import LengthFit, loss, remaining


def test_remaining_counts_the_targets_of_its_own_segment():
  segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 3, 3, 3, 3, 3]])
  weights = jnp.array([[0, 1, 1, 0.5, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 1, 0.0]])
  want = [[3, 3, 2, 1, 2, 2, 1, 0], [1, 1, 1, 2, 2, 1, 1, 0]]
  np.testing.assert_array_equal(remaining(weights, segments), want)


@given(st.data())
def test_remaining_equals_a_loop_over_every_line(data):
  lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
  line = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  segment = np.concatenate([line, np.zeros(data.draw(st.integers(0, 3)), int)])
  weight = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(segment),
                                       max_size=len(segment))))  # fmt: skip
  want = [(weight[i:] > 0)[segment[i:] == segment[i]].sum() for i in range(len(segment))]
  np.testing.assert_array_equal(remaining(jnp.array([weight]), jnp.array([segment]))[0], want)


def test_value_and_gradient_in_closed_form_and_nothing_from_uncounted_tokens():
  segments = jnp.array([[1, 1, 1, 2, 2, 0]])
  weights = jnp.array([[0, 1, 0.5, 0, 1, 0]], jnp.float32)
  y = jnp.array([[jnp.nan, 0.3, -0.2, jnp.inf, 1.0, jnp.nan]], jnp.float32)
  target = np.log([1, 2, 1, 1, 1, 1])
  (total, weight) = loss(y, weights, segments)
  grad = jax.grad(lambda y: loss(y, weights, segments)[0])(y)
  off = np.where(weights[0] > 0, np.nan_to_num(np.asarray(y[0]), posinf=0) - target, 0)
  np.testing.assert_allclose(total, (weights[0] * off**2).sum(), rtol=1e-6)
  np.testing.assert_allclose(grad[0], 2 * weights[0] * off, rtol=1e-6)
  assert weight == 2.5


def test_a_weight_that_leaves_it_out_is_an_error():
  with pytest.raises(ValueError, match='weight is 0'):
    LengthFit(weight=0)
