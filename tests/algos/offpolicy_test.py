"""Off-policy corrections against loops and exact expectations over an enumerated vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.offpolicy import SequenceMask, Truncated, kept, truncated_weights

V = 6


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def test_kept_drops_bad_sequences_that_the_policy_has_left():
  """mean log(π_s/π) is 0.3, 0.1, −0.5 or nothing; only A < 0 and more than 0.2 drops."""
  far, near, back = [0.1, 0.5], [0.0, 0.2], [-1.0, 0.0]
  ahead = jnp.array([far, far, far, near, back, far])
  mask = jnp.array([[1, 1]] * 5 + [[0, 0]])
  adv = jnp.array([-1.0, 0.0, 1.0, -1.0, -1.0, -1.0])
  got = kept(-ahead, jnp.zeros((6, 2)), adv, mask, SequenceMask(0.2))
  np.testing.assert_array_equal(got, [False, True, True, True, True, True])


def test_kept_averages_over_counted_tokens_alone():
  log = jnp.array([[0.3, 0.3, np.nan], [0.3, np.inf, 0.0]])
  mask = jnp.array([[1, 1, 0], [1, 0, 1]])
  got = kept(-log, jnp.zeros((2, 3)), -jnp.ones(2), mask, SequenceMask(0.2))
  np.testing.assert_array_equal(got, [False, True])


def policies():
  """Logits of the policy and of the trainer before the update; probabilities of the rollout."""
  rng = np.random.default_rng(0)
  logits, old, sampled = rng.normal(size=(3, V))
  return logits, jax.nn.log_softmax(old), jax.nn.log_softmax(sampled), rng.normal(size=V)


def expected_grad(cap):
  """Over all tokens of the rollout's distribution: ∇ Σ w·π/π_old·A, one token a sequence."""
  logits, old_V, sampled_V, adv_V = policies()
  mask_V1 = jnp.ones((V, 1))
  weight_V = truncated_weights(old_V[:, None], sampled_V[:, None], mask_V1, Truncated(cap))[:, 0]

  def f(logits):
    ratio_V = jnp.exp(jax.nn.log_softmax(logits) - old_V)
    return jnp.sum(jnp.exp(sampled_V) * weight_V * ratio_V * adv_V)

  return jax.grad(f)(jnp.asarray(logits))


def exact_grad(share_V):
  """∇ Σ_v π_v share_v A_v = π (share·A − Σ π share A)."""
  logits, _, _, adv_V = policies()
  p_V, x_V = np.exp(logits) / np.exp(logits).sum(), np.asarray(share_V) * adv_V
  return p_V * (x_V - p_V @ x_V)


def test_without_truncation_the_expected_gradient_is_exact():
  """Samples of another distribution, the gradient of the policy's own expected advantage."""
  np.testing.assert_allclose(expected_grad(1e9), exact_grad(np.ones(V)), rtol=1e-12, atol=1e-16)


def test_the_cap_takes_back_weight_where_the_rollout_was_too_shy():
  _, old_V, sampled_V, _ = policies()
  share_V = np.minimum(1, 1.2 * np.exp(sampled_V - old_V))
  assert 0 < (share_V < 1).sum() < V
  np.testing.assert_allclose(expected_grad(1.2), exact_grad(share_V), rtol=1e-12, atol=1e-16)
  assert np.abs(expected_grad(1.2) - exact_grad(np.ones(V))).max() > 1e-3


def test_weights_are_constants_and_padding_weighs_one():
  old, sampled = jnp.array([[0.0, np.nan, -1.0]]), jnp.array([[-3.0, 0.0, np.inf]])
  got = truncated_weights(old, sampled, jnp.array([[1, 0, 0]]), Truncated())
  np.testing.assert_array_equal(got, [[2, 1, 1]])
  ones = jnp.ones((1, 3))
  total = lambda o, s: truncated_weights(o, s, ones, Truncated()).sum()
  np.testing.assert_array_equal(jax.grad(total, (0, 1))(ones * 0.1, ones), np.zeros((2, 1, 3)))


def test_configs_refuse_what_cannot_work():
  with pytest.raises(ValueError, match='delta is -1'):
    SequenceMask(-1)
  with pytest.raises(ValueError, match='cap is 0'):
    Truncated(0)
