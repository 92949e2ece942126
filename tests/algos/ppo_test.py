"""PPO's pieces against closed forms, float64 loops and exact gradients of an enumerated policy."""

import dataclasses
import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.kl import K1, K2, K3
from r1jax.algos.ppo import (
  PPO,
  Targets,
  gae,
  loss,
  moments,
  targets,
  token_rewards,
  value_errors,
  whiten,
)
from r1jax.algos.surrogate import Clip, ConstantLength, SequenceMean, TokenMean

B, L = 4, 6
RNG = np.random.default_rng(0)
# A whole row, a short one, one with a hole (a tool's output), one without a token.
MASK = np.array([[1] * 6, [0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0], [0] * 6], bool)
LOGP, OLD, REF, VALUE, OLD_VALUE = RNG.normal(size=(5, B, L))
REWARD = RNG.normal(size=B)
NUMBERS = st.floats(-3, 3, width=32)


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def arrays(*xs):
  return tuple(jnp.asarray(x) for x in xs)


def gae_of_one(reward, value, gamma, lam):
  """Σ_k (γλ)^k δ_{t+k} for each t, by its definition."""
  n, after = len(reward), np.append(value, 0)
  delta = [reward[t] + gamma * after[t + 1] - value[t] for t in range(n)]
  return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize('gamma, lam', [(1.0, 0.95), (1.0, 1.0), (0.9, 0.95), (1.0, 0.0)])
def test_gae_is_its_definition_over_the_counted_tokens(gamma, lam):
  junk = lambda x: jnp.where(MASK, x, np.nan)
  got = gae(junk(REF), junk(VALUE), jnp.asarray(MASK), gamma, lam)
  want = np.zeros((B, L))
  for i, m in enumerate(MASK):
    want[i, m] = gae_of_one(REF[i, m], VALUE[i, m], gamma, lam)
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


MONTE_CARLO = jax.jit(lambda *x: gae(*x, 1.0, 1.0))


@given(
  reward=hnp.arrays(np.float64, (2, 5), elements=NUMBERS),
  value=hnp.arrays(np.float64, (2, 5), elements=NUMBERS),
  mask=hnp.arrays(np.bool_, (2, 5)),
)
def test_with_both_at_one_it_is_the_monte_carlo_return_minus_the_value(reward, value, mask):
  got = MONTE_CARLO(reward, value, mask)
  to_go = np.cumsum(np.where(mask, reward, 0)[:, ::-1], axis=1)[:, ::-1]
  np.testing.assert_allclose(got, np.where(mask, to_go - value, 0), atol=1e-12)


def test_the_reward_comes_at_the_last_counted_token():
  got = token_rewards(*arrays(REWARD, OLD), None, jnp.asarray(MASK), PPO())
  want = np.zeros((B, L))
  for i, t in [(0, 5), (1, 2), (2, 4)]:
    want[i, t] = REWARD[i]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('kind', [K1(), K2(), K3()])
def test_the_kl_penalty_is_taken_off_every_counted_token(kind):
  old, ref = (np.where(MASK, x, np.nan) for x in (OLD, REF))
  got = token_rewards(*arrays(REWARD, old, ref, MASK), PPO(beta=0.1, kl=kind))
  bare = token_rewards(*arrays(REWARD, OLD), None, jnp.asarray(MASK), PPO())
  d = OLD - REF
  term = {K1(): d, K2(): d**2 / 2, K3(): np.exp(-d) - 1 + d}[kind]
  np.testing.assert_allclose(got, bare - np.where(MASK, 0.1 * term, 0), rtol=1e-12, atol=1e-15)
  with pytest.raises(ValueError, match='ref_BL is None'):
    token_rewards(*arrays(REWARD, OLD), None, jnp.asarray(MASK), PPO(beta=0.1))


def toy(beta, kl):
  """Expected gradient of the surrogate over all pairs of three tokens, and what is maximized."""
  rng, V = np.random.default_rng(1), 3
  pairs = np.array(list(itertools.product(range(V), repeat=2)))
  policy, ref = ({'a': rng.normal(size=V), 'b': rng.normal(size=(V, V))} for _ in range(2))
  reward_B = jnp.asarray(rng.normal(size=V * V))

  def logp_BL(x):
    a, b = jax.nn.log_softmax(x['a']), jax.nn.log_softmax(x['b'])
    return jnp.stack([a[pairs[:, 0]], b[pairs[:, 0], pairs[:, 1]]], axis=1)

  old_BL, ref_BL, mask_BL = logp_BL(policy), logp_BL(ref), jnp.ones((V * V, 2))
  cfg = PPO(lam=1.0, beta=beta, kl=kl, whiten=False, value_weight=0, aggregate=ConstantLength(1))
  value_BL = jnp.stack([jnp.full(V * V, 0.7), jnp.asarray(rng.normal(size=V))[pairs[:, 0]]], axis=1)
  to = targets(reward_B, value_BL, old_BL, ref_BL, mask_BL, cfg)

  p_B1 = jnp.exp(old_BL.sum(axis=1, keepdims=True))

  def surrogate(x):
    weighed = Targets(to.advantage_BL * p_B1, to.return_BL)
    return loss(logp_BL(x), old_BL, value_BL, value_BL, weighed, mask_BL, cfg)[0][0]

  def objective(x):
    logp_B = logp_BL(x).sum(axis=1)
    return jnp.dot(jnp.exp(logp_B), reward_B - beta * (logp_B - ref_BL.sum(axis=1)))

  return jax.jit(jax.grad(surrogate))(policy), jax.jit(jax.grad(objective))(policy)


def test_contract_02_k1_in_the_reward_descends_the_reverse_kl_exactly():
  """λ = 1: the gradient of E[R] − β KL(π ‖ π_ref) of whole sequences, values as mere baselines."""
  got, want = toy(0.3, K1())
  for name in want:
    np.testing.assert_allclose(-got[name], want[name], rtol=1e-11, atol=1e-15)


def test_contract_02_k3_in_the_reward_does_not():
  got, want = toy(0.3, K3())
  assert np.abs(got['a'] + want['a']).max() > 1e-3


def test_whitened_advantages_have_mean_zero_and_variance_one():
  x, mask = np.where(MASK, 1e3 + OLD, np.nan), jnp.asarray(MASK)
  got = np.asarray(whiten(jnp.asarray(x), mask, moments(jnp.asarray(x), mask)))
  want = (OLD[MASK] - OLD[MASK].mean()) / OLD[MASK].std()
  np.testing.assert_allclose(got[MASK], want, rtol=1e-6)
  np.testing.assert_array_equal(got[~MASK], 0)


def test_contract_10_moments_of_the_whole_whiten_its_parts():
  """Parts whitened by the whole's moments are the whole's; by their own they would differ."""
  x, mask = arrays(OLD, MASK)
  whole = moments(x, mask)
  parts = [whiten(x[i : i + 2], mask[i : i + 2], whole) for i in (0, 2)]
  np.testing.assert_array_equal(np.concatenate(parts), whiten(x, mask, whole))
  own = whiten(x[:2], mask[:2], moments(x[:2], mask[:2]))
  assert np.abs(own - parts[0]).max() > 0.01


@pytest.mark.parametrize('x', [np.zeros((2, 3)), np.full((2, 3), 7.0)])
@pytest.mark.parametrize('mask', [np.ones((2, 3)), np.zeros((2, 3))])
def test_contract_10_equal_advantages_whiten_to_zero(x, mask):
  got = whiten(*arrays(x, mask), moments(*arrays(x, mask)))
  np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize('value, want, grad, held', [
  (1.1, 0.5 * 0.9**2, -0.9, False),  # inside the bound
  (1.5, 0.5 * 0.8**2, 0.0, True),    # moved towards the return, past the bound: no more pull
  (0.5, 0.5 * 1.5**2, -1.5, False),  # moved away: pulled back in full
  (9.0, 0.5 * 7.0**2, 7.0, False),   # past the return by more than the bound falls short
])  # fmt: skip
def test_value_clipping_around_1_by_02_towards_2(value, want, grad, held):
  one = lambda x: jnp.full((1, 1), x)
  f = lambda v: tuple(x[0, 0] for x in value_errors(one(v), one(1.0), one(2.0), 0.2))
  (got, got_held), got_grad = jax.jit(jax.value_and_grad(f, has_aux=True))(value)
  np.testing.assert_allclose((got, got_grad), (want, grad), rtol=1e-12)
  assert got_held == held


def test_without_a_value_bound_it_is_half_the_squared_error():
  got, held = value_errors(*arrays(VALUE, OLD_VALUE, REF), None)
  np.testing.assert_allclose(got, 0.5 * (VALUE - REF) ** 2, rtol=1e-12)
  assert not held.any()


CONFIGS = [PPO(beta=0.1), PPO(aggregate=SequenceMean(), value_clip=None), PPO(clip=Clip(0.1, 0.3))]


@pytest.mark.parametrize('cfg', CONFIGS)
def test_loss_is_the_sum_of_its_parts(cfg):
  to = targets(*arrays(REWARD, OLD_VALUE, OLD, REF, MASK), cfg)
  (total, weight), metrics = loss(*arrays(LOGP, OLD, VALUE, OLD_VALUE), to, jnp.asarray(MASK), cfg)
  adv, ret = np.asarray(to.advantage_BL), np.asarray(to.return_BL)
  raw = gae(
    token_rewards(*arrays(REWARD, OLD, REF, MASK), cfg), *arrays(OLD_VALUE, MASK), 1.0, 0.95
  )
  np.testing.assert_allclose(ret[MASK], (np.asarray(raw) + OLD_VALUE)[MASK], rtol=1e-12)
  np.testing.assert_allclose((adv[MASK].mean(), adv[MASK].std()), (0, 1), atol=1e-7)
  r = np.exp(LOGP - OLD)
  policy = -np.minimum(r * adv, np.clip(r, 1 - cfg.clip.low, 1 + cfg.clip.high) * adv)
  near = OLD_VALUE + np.clip(VALUE - OLD_VALUE, -(cfg.value_clip or 99), cfg.value_clip or 99)
  error = 0.5 * np.maximum((VALUE - ret) ** 2, (near - ret) ** 2)
  share = MASK / np.maximum(MASK.sum(axis=1, keepdims=True), 1)
  share = (share if cfg.aggregate == SequenceMean() else MASK) * 1.0
  np.testing.assert_allclose(total, (share * (policy + 0.5 * error)).sum(), rtol=1e-12)
  assert weight == (3 if cfg.aggregate == SequenceMean() else MASK.sum())
  np.testing.assert_allclose(metrics['value_loss'][0], (share * error).sum(), rtol=1e-12)
  np.testing.assert_allclose(metrics['policy_loss'][0], (share * policy).sum(), rtol=1e-12)
  np.testing.assert_allclose(np.divide(*metrics['value']), VALUE[MASK].mean(), rtol=1e-12)


@pytest.mark.parametrize('junk', [np.nan, np.inf])
def test_contract_01_parts_add_up_and_padding_is_nothing(junk):
  cfg = PPO(beta=0.1)
  clean = arrays(LOGP, OLD, VALUE, OLD_VALUE, REF)
  dirty = [jnp.where(MASK, x, junk) for x in clean]

  def both(xs, rows=slice(None)):
    to, mask = targets(*arrays(REWARD), xs[3], xs[1], xs[4], *arrays(MASK), cfg), jnp.asarray(MASK)
    to = Targets(*(x[rows] for x in to))

    def f(logp, value):
      return loss(logp[rows], xs[1][rows], value[rows], xs[3][rows], to, mask[rows], cfg)[0]

    return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(xs[0], xs[2])

  whole = both(clean)
  jax.tree.map(np.testing.assert_array_equal, both(dirty), whole)
  split = jax.tree.map(lambda a, b: a + b, both(clean, slice(0, 1)), both(clean, slice(1, 4)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), split, whole)


def test_targets_are_constants():
  f = lambda v: sum(
    x.sum()
    for x in targets(*arrays(REWARD), v, *arrays(OLD, REF, MASK), PPO(aggregate=TokenMean()))
  )
  np.testing.assert_array_equal(jax.grad(f)(jnp.asarray(VALUE)), 0)


@pytest.mark.parametrize(
  'field, value',
  [('gamma', 1.1), ('lam', -0.1), ('value_weight', -1), ('beta', -1), ('value_clip', 0)],
)
def test_configs_refuse_what_cannot_work(field, value):
  with pytest.raises(ValueError, match=f'{field} is {value}'):
    dataclasses.replace(PPO(), **{field: value})
