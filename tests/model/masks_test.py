"""Whole masks."""

import jax.numpy as jnp
import numpy as np

from r1jax.model.masks import over_cache, within


def test_packed_segments_are_independent_and_padding_sees_nothing():
  positions_BL = jnp.array([[0, 1, 0, 1, 2, 0]])
  segments_BL = jnp.array([[1, 1, 2, 2, 2, 0]])
  want = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0],
    [0, 0, 1, 1, 0, 0],
    [0, 0, 1, 1, 1, 0],
    [0, 0, 0, 0, 0, 0],
  ]
  np.testing.assert_array_equal(within(positions_BL, segments_BL)[0], np.array(want, bool))


def test_the_order_is_that_of_positions_not_of_slots():
  got = within(jnp.array([[3, 0, 2, 1]]), jnp.ones((1, 4), jnp.int32))[0]
  want = [[1, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1]]
  np.testing.assert_array_equal(got, np.array(want, bool))


def test_slots_up_to_the_own_position_are_seen():
  got = over_cache(jnp.array([[0, 1], [3, 4]]), jnp.array([[1, 1], [1, 0]]), 5)
  want = [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]]
  np.testing.assert_array_equal(got, np.array(want, bool))
