"""Contract 2: what each KL term descends, against exact gradients on an enumerable vocabulary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.kl import K1, K2, K3, Unbiased, kl

V = 5
PAIRS = np.array(list(itertools.product(range(V), repeat=2)))


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def policy(seed):
  """Logits of the first token [V] and of the second given the first [V, V]."""
  rng = np.random.default_rng(seed)
  return {'first': rng.normal(size=V), 'second': rng.normal(size=(V, V))}


POLICY, REF, OLD = policy(0), policy(1), policy(2)


def logp_BL(logits):
  """Log-probs of both tokens of every pair: B = V² sequences of L = 2."""
  first, second = jax.nn.log_softmax(logits['first']), jax.nn.log_softmax(logits['second'])
  return jnp.stack([first[PAIRS[:, 0]], second[PAIRS[:, 0], PAIRS[:, 1]]], axis=1)


def expected(spec, logits, old, length):
  """Expectation over sequences from old of the summed KL term of their first `length` tokens."""
  old_BL = logp_BL(old)
  term_BL = kl(spec, logp_BL(logits), logp_BL(REF), old_BL)
  return jnp.sum(jnp.exp(old_BL.sum(axis=1)) * term_BL[:, :length].sum(axis=1))


@functools.partial(jax.jit, static_argnames=('spec', 'length'))
def expected_grad(spec, logits, old, length):
  return jax.grad(lambda logits: expected(spec, logits, old, length))(logits)


def probs(logits):
  e = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def reverse(logits, ref):
  """KL(π ‖ π_ref) and its gradient in the logits: π (log π/π_ref − KL)."""
  p, q = probs(logits), probs(ref)
  value = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
  return value[..., 0], p * (np.log(p / q) - value)


def forward(logits, ref):
  """KL(π_ref ‖ π) and its gradient in the logits: π − π_ref."""
  p, q = probs(logits), probs(ref)
  return (q * np.log(q / p)).sum(axis=-1), p - q


def exact(divergence, prefix, length):
  """Value and gradient of the sum of conditional divergences, prefixes drawn from `prefix`."""
  value, first = divergence(POLICY['first'], REF['first'])
  values, second = divergence(POLICY['second'], REF['second'])
  weight = probs(prefix['first']) * (length == 2)
  grad = {'first': first, 'second': weight[:, None] * second}
  return value + (weight * values).sum(), grad


def assert_same(got, want):
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize('length', [1, 2])
class TestContract2:
  def test_contract_02_k1_has_zero_expected_gradient_on_policy(self, length):
    zero = {name: np.zeros_like(x) for name, x in POLICY.items()}
    assert_same(expected_grad(K1(), POLICY, POLICY, length), zero)

  def test_contract_02_k2_descends_the_reverse_kl_on_policy(self, length):
    _, want = exact(reverse, POLICY, length)
    assert_same(expected_grad(K2(), POLICY, POLICY, length), want)

  def test_contract_02_k3_descends_the_forward_kl_on_policy(self, length):
    _, want = exact(forward, POLICY, length)
    assert_same(expected_grad(K3(), POLICY, POLICY, length), want)

  @pytest.mark.parametrize('old', [POLICY, OLD], ids=['on-policy', 'off-policy'])
  def test_contract_02_unbiased_descends_the_reverse_kl(self, length, old):
    _, want = exact(reverse, old, length)
    assert_same(expected_grad(Unbiased(), POLICY, old, length), want)

  @pytest.mark.parametrize('spec', [K1(), K2(), K3()])
  def test_contract_02_the_others_are_biased_off_policy(self, length, spec):
    _, want = exact(reverse, OLD, length)
    got = expected_grad(spec, POLICY, OLD, length)
    assert np.abs(got['first'] - want['first']).max() > 0.01

  @pytest.mark.parametrize('spec', [K1(), K3(), Unbiased()])
  def test_values_are_unbiased_on_policy(self, length, spec):
    want, _ = exact(reverse, POLICY, length)
    np.testing.assert_allclose(expected(spec, POLICY, POLICY, length), want, rtol=1e-12)

  def test_value_of_unbiased_is_unbiased_off_policy(self, length):
    want, _ = exact(reverse, OLD, length)
    np.testing.assert_allclose(expected(Unbiased(), POLICY, OLD, length), want, rtol=1e-12)


def test_terms_by_token_leave_out_the_effect_on_later_prefixes():
  """k2 of whole sequences has the gradient of their KL; by token it lacks that effect."""

  def sequence_kl(logits):
    logp_B, ref_B = logp_BL(logits).sum(axis=1), logp_BL(REF).sum(axis=1)
    return jnp.sum(jnp.exp(logp_B) * (logp_B - ref_B))

  def whole(logits):
    sums = [logp_BL(x).sum(axis=1, keepdims=True) for x in (logits, REF, POLICY)]
    return jnp.sum(jnp.exp(sums[2]) * kl(K2(), *sums))

  want = jax.grad(sequence_kl)(POLICY)
  assert_same(jax.grad(whole)(POLICY), want)
  by_token = expected_grad(K2(), POLICY, POLICY, 2)
  np.testing.assert_allclose(by_token['second'], want['second'], rtol=1e-12, atol=1e-15)
  assert np.abs(by_token['first'] - want['first']).max() > 0.01


@pytest.mark.parametrize('spec', [K1(), K2(), K3(), Unbiased()])
def test_reference_and_old_policy_are_constants(spec):
  x = jnp.array([[-0.5, -2.0]])
  grads = jax.grad(lambda ref, old: kl(spec, x, ref, old).sum(), (0, 1))(x - 1, x + 0.3)
  np.testing.assert_array_equal(np.stack(grads), 0)


def test_k3_keeps_its_digits_near_the_reference():
  logp_BL = jnp.array([[-1.0]], jnp.float32)
  d = np.float64(np.float32(-1.0 + 1e-3)) + 1
  got = kl(K3(), logp_BL, logp_BL + jnp.float32(1e-3), logp_BL)
  np.testing.assert_allclose(got, [[d * d / 2 + d**3 / 6]], rtol=2e-3)
