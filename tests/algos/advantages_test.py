"""Advantages against float64 numpy; contract 10."""

import dataclasses
import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.advantages import Centered, LeaveOneOut, Std, group_advantages

GROUPS = hnp.arrays(
  np.float32,
  st.sampled_from([(1, 1), (1, 5), (3, 4)]),
  elements=st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 1.1, 3.0]),
)


def oracle(reward_PG, scale):
  reward_PG = np.asarray(reward_PG, np.float64)
  centered_PG = reward_PG - reward_PG.mean(axis=1, keepdims=True)
  if scale == Centered():
    return centered_PG
  if scale == LeaveOneOut():
    others_PG = [[np.delete(row, i) for i in range(len(row))] for row in reward_PG]
    return reward_PG - [
      [x.mean() if len(x) else row[0] for x in xs] for xs, row in zip(others_PG, reward_PG)
    ]
  return centered_PG / (reward_PG.std(axis=1, keepdims=True) + scale.eps)


@pytest.mark.parametrize('scale', [Std(), Std(eps=0.1), Centered(), LeaveOneOut()])
@given(reward_PG=GROUPS)
def test_matches_float64(reward_PG, scale):
  got = group_advantages(jnp.asarray(reward_PG), scale)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(reward_PG, scale), rtol=1e-5, atol=1e-5)


def test_closed_form():
  """One success in four: mean 1/4, std √3/4."""
  got = group_advantages(jnp.array([[1, 0, 0, 0]]), Std())
  np.testing.assert_allclose(got, [[np.sqrt(3), *[-1 / np.sqrt(3)] * 3]], rtol=1e-5)
  got = group_advantages(jnp.array([[1, 0, 0, 0]]), Centered())
  np.testing.assert_array_equal(got, [[0.75, -0.25, -0.25, -0.25]])
  got = group_advantages(jnp.array([[1, 0, 0, 0]]), LeaveOneOut())
  np.testing.assert_allclose(got, [[1, *[-1 / 3] * 3]], rtol=1e-6)


@pytest.mark.parametrize('scale, share', [(LeaveOneOut(), 1.0), (Centered(), 2 / 3)])
def test_leave_one_out_is_the_unbiased_policy_gradient(scale, share):
  """Over all groups of three from four outcomes; centering on all three keeps 2/3 of it."""
  rng = np.random.default_rng(0)
  logits, reward = rng.normal(size=4), rng.normal(size=4)
  p = np.exp(logits) / np.exp(logits).sum()
  exact = p * (reward - p @ reward)
  groups = np.array(list(itertools.product(range(4), repeat=3)))
  with jax.enable_x64(True):
    adv_PG = np.asarray(group_advantages(jnp.asarray(reward[groups]), scale))
  scores = np.eye(4)[groups] - p
  got = np.einsum('P,PG,PGV->V', p[groups].prod(axis=1), adv_PG, scores) / 3
  np.testing.assert_allclose(got, share * exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('scale', [Std(), Centered(), LeaveOneOut()])
@given(reward=st.floats(-1e6, 1e6, width=32), shape=st.sampled_from([(1, 1), (3, 1), (2, 7)]))
def test_contract_10_zero_variance_and_groups_of_one_are_exactly_zero(scale, reward, shape):
  got = group_advantages(jnp.full(shape, reward, jnp.float32), scale)
  np.testing.assert_array_equal(got, np.zeros(shape))


@given(reward_PG=GROUPS)
def test_contract_10_statistics_come_before_the_split(reward_PG):
  """Slices of prompts give the slices of the whole: groups do not see each other."""
  whole = group_advantages(jnp.asarray(reward_PG), Std())
  parts = [group_advantages(jnp.asarray(row[None]), Std()) for row in reward_PG]
  np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_contract_10_a_group_that_was_split_would_differ():
  reward_PG = jnp.array([[1.0, 1.0, 0.0, 0.0]])
  np.testing.assert_allclose(group_advantages(reward_PG, Std()), [[1, 1, -1, -1]], rtol=1e-5)
  np.testing.assert_array_equal(group_advantages(reward_PG.reshape(2, 2), Std()), np.zeros((2, 2)))


@pytest.mark.parametrize('scale', [Std(), Centered(), LeaveOneOut()])
def test_a_common_offset_costs_no_digits(scale):
  reward_PG = np.array([[0, 1, 1, 0] * 4, [0, 0, 0, 1] * 4], np.float32)
  got = group_advantages(jnp.asarray(reward_PG + np.float32(1e6)), scale)
  np.testing.assert_allclose(got, oracle(reward_PG, scale), rtol=1e-6)


def test_rewards_must_come_in_groups():
  with pytest.raises(AssertionError, match='rank'):
    group_advantages(jnp.zeros(4), Std())
  with pytest.raises(ValueError, match='eps is 0'):
    dataclasses.replace(Std(), eps=0)
