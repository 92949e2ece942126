"""Shaped rewards against their closed forms."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from r1jax.algos.advantages import Std, group_advantages
from r1jax.algos.shaping import (
  Overlong,
  Rank,
  Raw,
  Shaping,
  best,
  keep,
  overlong,
  ranks,
  shape,
)

GROUPS = hnp.arrays(
  np.float32,
  st.sampled_from([(1, 1), (1, 5), (3, 4)]),
  elements=st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 1.1, 3.0]),
)
RANKS = jax.jit(ranks)
DAPO = Overlong(20480, 4096)


def test_overlong_is_dapo_s():
  """0 up to 16,384 tokens, linear to −1 at 20,480, −1 beyond."""
  length = jnp.array([0, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 10**6])
  want = [0, 0, 0, -1 / 4096, -0.5, -4095 / 4096, -1, -1, -1]
  np.testing.assert_array_equal(overlong(length, DAPO), np.float32(want))


@given(reward_PG=GROUPS)
def test_ranks_are_scipy_s_average_ranks(reward_PG):
  got, group = RANKS(reward_PG), reward_PG.shape[1]
  want = (rankdata(reward_PG, axis=1) - 1) / (group - 1) if group > 1 else [[0.5]]
  np.testing.assert_allclose(got, want, rtol=1e-6)


@given(reward_PG=GROUPS)
def test_ranks_depend_on_the_order_alone(reward_PG):
  same = RANKS(reward_PG)
  np.testing.assert_array_equal(RANKS(np.exp(reward_PG) * 100 - 7), same)
  np.testing.assert_allclose(RANKS(-reward_PG), 1 - same, rtol=1e-6)


@given(reward=st.floats(-1e6, 1e6, width=32), shape_PG=st.sampled_from([(1, 1), (2, 7)]))
def test_contract_10_equal_rewards_have_advantage_zero_by_rank_too(reward, shape_PG):
  adv_PG = group_advantages(RANKS(np.full(shape_PG, reward, np.float32)), Std())
  np.testing.assert_array_equal(adv_PG, np.zeros(shape_PG))


def test_contract_10_kept_are_the_groups_with_both_outcomes():
  correct_PG = jnp.array([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]])
  np.testing.assert_array_equal(keep(correct_PG), [False, True, True, False])
  np.testing.assert_array_equal(keep(jnp.array([[1], [0]])), [False, False])


@given(correct_PG=hnp.arrays(np.bool_, (4, 3)))
def test_contract_10_a_group_is_kept_iff_its_advantages_are_not_all_zero(correct_PG):
  adv_PG = group_advantages(jnp.asarray(correct_PG, jnp.float32), Std())
  np.testing.assert_array_equal(keep(jnp.asarray(correct_PG)), np.any(adv_PG != 0, axis=1))


def test_the_length_counts_before_the_rank():
  """Two correct answers, one of them too long: it ranks between the other and the wrong ones."""
  reward_PG, length_PG = jnp.array([[1, 1, 0, 0]]), jnp.array([[9, 15, 9, 9]])
  cut = Overlong(limit=16, buffer=4)
  np.testing.assert_allclose(
    shape(reward_PG, length_PG, Shaping(cut, Raw())), [[1, 0.25, 0, 0]], rtol=1e-6
  )
  got = shape(reward_PG, length_PG, Shaping(cut, Rank()))
  np.testing.assert_allclose(got, [[1, 2 / 3, 1 / 6, 1 / 6]], rtol=1e-6)
  np.testing.assert_array_equal(shape(reward_PG, length_PG, Shaping()), [[1, 1, 0, 0]])


def test_a_buffer_longer_than_the_limit_is_refused():
  with pytest.raises(ValueError, match='buffer is 5 and limit 4'):
    Overlong(4, 5)


def test_the_best_groups_are_the_kept_ones_then_those_that_lie_furthest_apart():
  keep_P = np.array([0, 1, 0, 0, 1, 0], bool)
  spread_P = np.array([0.0, 0.1, 0.5, 0.7, 0.1, 0.5])
  for count, expected in ((1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (4, [1, 2, 3, 4]), (6, range(6))):
    assert best(keep_P, spread_P, count).tolist() == list(expected)
  assert best(np.ones(3, bool), np.zeros(3), 2).tolist() == [0, 1]


@given(
  keep_P=hnp.arrays(np.bool_, 7),
  spread_P=hnp.arrays(np.int8, 7, elements=st.integers(0, 3)),
  cut=st.integers(2, 7),
)
def test_the_best_of_all_are_the_best_of_the_best_so_far(keep_P, spread_P, cut):
  """So that a step need not hold on to more groups than it trains on."""
  first = best(keep_P[:cut], spread_P[:cut], 2)
  held = np.concatenate([first, np.arange(cut, 7)])
  again = held[best(keep_P[held], spread_P[held], 2)]
  np.testing.assert_array_equal(again, best(keep_P, spread_P, 2))
