"""Reward-model losses and measures against closed forms; TRL parity of pairs in trl_test."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.reward_model import (
  Pairwise,
  Process,
  agreement,
  bce,
  calibration_bins,
  calibration_error,
  pairwise,
  pointwise,
  position_bias,
  process,
)
from r1jax.algos.surrogate import SequenceMean

BCE = jax.jit(jax.value_and_grad(bce))
PROCESS = jax.jit(process, static_argnums=3)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_pairwise_value_and_gradient_in_closed_form():
  c, r, m = RNG.normal(size=(3, 6))
  f = lambda c, r: pairwise(c, r, Pairwise(0.02), jnp.asarray(m))[0]
  (total, weight), grads = jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(c, r)
  miss = 1 - sigmoid(c - r - m)
  np.testing.assert_allclose(total, (-np.log1p(-miss) + 0.02 * (c + r) ** 2).sum(), rtol=1e-12)
  np.testing.assert_allclose(grads[0], -miss + 0.04 * (c + r), rtol=1e-10)
  np.testing.assert_allclose(grads[1], miss + 0.04 * (c + r), rtol=1e-10)
  assert weight == 6


def test_the_minimum_over_bradley_terry_preferences_is_the_reward_centered():
  """At r − mean r the expected pair term has no gradient; the squared sums pull that mean to 0."""
  reward = RNG.normal(size=4)
  won, lost = np.array([p for p in itertools.product(range(4), repeat=2) if p[0] != p[1]]).T
  p = jnp.asarray(sigmoid(reward[won] - reward[lost]))

  def f(r, center):
    row = lambda a, b: pairwise(a[None], b[None], Pairwise(center))[0][0]
    return jnp.dot(p, jax.vmap(row)(r[won], r[lost]))

  grad = jax.jit(jax.grad(f), static_argnums=1)
  np.testing.assert_allclose(grad(reward, 0.0), 0, atol=1e-12)
  np.testing.assert_allclose(grad(reward + 5, 0.0), 0, atol=1e-12)
  centered = reward - reward.mean()
  assert abs(grad(centered + 5, 0.01).sum()) > 0.1
  np.testing.assert_allclose(grad(centered, 0.01).sum(), 0, atol=1e-12)


@given(logit=st.floats(-200, 200), label=st.sampled_from([0.0, 0.25, 1.0]))
def test_bce_is_exact_for_large_logits(logit, label):
  got, grad = BCE(logit, label)
  want = max(logit, 0) - logit * label + np.log1p(np.exp(-abs(logit)))
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
  with np.errstate(over='ignore'):
    np.testing.assert_allclose(grad, sigmoid(logit) - label, rtol=1e-9, atol=1e-15)


def test_pointwise():
  logit, label = jnp.array([2.0, -1.0, 0.5, 9.0]), jnp.array([1, 1, 0, 0])
  mask = jnp.array([1, 1, 1, 0])
  (total, weight), metrics = pointwise(logit, label, mask)
  want = -np.log([sigmoid(2.0), sigmoid(-1.0), sigmoid(-0.5)])
  np.testing.assert_allclose((total, weight), (want.sum(), 3), rtol=1e-12)
  assert metrics['accuracy'] == (1, 3)
  prob = sigmoid(np.array([2.0, -1.0, 0.5])).sum()
  np.testing.assert_allclose(metrics['probability'], (prob, 3), rtol=1e-12)


LOGIT = np.array([[3.0, 1.0, -2.0, 0.5], [0.1, -0.2, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
LABEL = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
END = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize('cfg', [Process(), Process(SequenceMean())])
def test_process_counts_step_ends_alone(cfg):
  """Three steps of two solutions: the mean over steps, or over solutions of their means."""
  step = -np.log([sigmoid(1.0), sigmoid(2.0), sigmoid(4.0)])
  want = step.mean() if cfg == Process() else (step[:2].mean() + step[2]) / 2
  (total, weight), metrics = PROCESS(LOGIT, LABEL, END, cfg)
  np.testing.assert_allclose(total / weight, want, rtol=1e-12)
  assert weight == (3 if cfg == Process() else 2)
  assert metrics == {'accuracy': (3, 3), 'solved': (2, 2)}
  grad = jax.grad(lambda x: PROCESS(x, LABEL, END, cfg)[0][0])(LOGIT)
  np.testing.assert_array_equal(np.asarray(grad) != 0, END != 0)


def test_solved_wants_the_whole_solution_judged_as_labelled():
  """A wrong step that the model likes; a right one that it does not; both wrong in one place."""
  logit = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
  label = np.array([[1, 0], [1, 1], [1, 0]])
  _, metrics = PROCESS(logit, label, np.ones((3, 2)), Process())
  assert metrics == {'accuracy': (2, 6), 'solved': (1, 3)}


def test_contract_01_rows_masked_out_reach_neither_value_nor_gradient():
  x, mask = jnp.array([1.0, jnp.nan, -0.5]), jnp.array([1, 0, 1])
  clean = jnp.where(mask, x, 0.0)
  cases = {
    'pairwise': lambda x: pairwise(x, -x, Pairwise(0.1), x, mask)[0],
    'pointwise': lambda x: pointwise(x, jnp.ones(3), mask)[0],
    'process': lambda x: process(x[:, None], jnp.ones((3, 1)), mask[:, None], Process())[0],
  }
  for name, f in cases.items():
    got, want = (jax.jit(jax.value_and_grad(f, has_aux=True))(v) for v in (x, clean))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert want[0][1] == 2 and got[1][1] == 0, name


def test_agreement_counts_a_tie_as_half():
  got = agreement(
    jnp.array([1.0, 0.0, 2.0, 9.0]), jnp.array([0.0, 0.0, 3.0, 0.0]), jnp.array([1, 1, 1, 0])
  )
  assert got == (1.5, 3)


def test_calibration_error_by_hand():
  """0.6 and 0.7 of ten bins with one right each in two, 1.0 in the last bin."""
  prob, label = jnp.array([0.62, 0.68, 0.75, 0.75, 1.0, 0.3]), jnp.array([1, 0, 1, 1, 1, 0])
  bins = calibration_bins(prob, label, mask_B=jnp.array([1, 1, 1, 1, 1, 0]))
  np.testing.assert_array_equal(bins.count_Q, [0, 0, 0, 0, 0, 0, 2, 2, 0, 1])
  want = (2 * abs(0.5 - 0.65) + 2 * abs(1 - 0.75) + 0) / 5
  np.testing.assert_allclose(calibration_error(bins), want, rtol=1e-12)


def test_bins_add_up_over_batches():
  prob, label = RNG.uniform(size=40), RNG.integers(2, size=40)
  parts = [calibration_bins(prob[i], label[i]) for i in (slice(0, 7), slice(7, 40))]
  whole = jax.tree.map(lambda a, b: a + b, *parts)
  want = calibration_error(calibration_bins(prob, label))
  np.testing.assert_allclose(calibration_error(whole), want, rtol=1e-12)
  assert want > 0.1


def test_outcomes_drawn_with_the_stated_probability_are_calibrated():
  rng = np.random.default_rng(1)
  prob = rng.uniform(size=200_000)
  label = rng.uniform(size=prob.size) < prob
  assert calibration_error(calibration_bins(*map(jnp.asarray, (prob, label)))) < 0.01
  wrong = calibration_error(calibration_bins(jnp.asarray(prob) ** 2, jnp.asarray(label)))
  np.testing.assert_allclose(wrong, 1 / 2 - 1 / 3, atol=0.01)


def test_position_bias():
  """A fair judge; one that always says "the first"; one whose mild bias turns a single pair."""
  finish = lambda first, swapped: {
    k: float(a / b) for k, (a, b) in position_bias(*map(jnp.asarray, (first, swapped))).items()
  }
  fair = finish([0.9, 0.2], [0.1, 0.8])
  np.testing.assert_allclose(list(fair.values()), 0, atol=1e-12)
  assert finish([1.0, 1.0], [1.0, 1.0]) == {'toward_first': 0.5, 'inconsistent': 1, 'shift': 1}
  mild = finish([0.9, 0.55], [0.3, 0.65])
  np.testing.assert_allclose(list(mild.values()), [0.1, 0.5, 0.2], rtol=1e-12)


def test_configs_refuse_what_cannot_work():
  with pytest.raises(ValueError, match='center is -1'):
    Pairwise(-1)
