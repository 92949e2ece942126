"""DPO and IPO: closed-form gradients, and the minimum that theory gives; TRL parity in trl_test."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.dpo import DPO, IPO, PerToken, Scored, Sigmoid, Summed, loss

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = (
  Scored(*(jnp.asarray(RNG.normal(size=5) * 4 - 9) for _ in range(2)), jnp.array([3, 1, 4, 1, 5]))
  for _ in range(2)
)
CONFIGS = [
  DPO(form=form, score=score, beta=0.3)
  for form in (Sigmoid(), Sigmoid(0.1), IPO())
  for score in (Summed(), PerToken())
]


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def as64(side):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), side)


def test_at_the_reference_the_loss_is_log_2_and_nothing_is_won():
  side = CHOSEN._replace(ref_B=CHOSEN.logp_B)
  (total, weight), metrics = loss(side, side, DPO())
  np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-6)
  assert all(x == 0 for x, _ in metrics.values())


@pytest.mark.parametrize('cfg', CONFIGS)
def test_value_gradient_and_metrics_in_closed_form(cfg):
  sides = [as64(CHOSEN), as64(REJECTED)]
  n = [s.tokens_B if cfg.score == PerToken() else np.ones(5) for s in sides]
  s = [(x.logp_B - x.ref_B) / k for x, k in zip(sides, n)]
  h, eps = s[0] - s[1], getattr(cfg.form, 'smoothing', 0)
  sigma = 1 / (1 + np.exp(-0.3 * h))
  value = -(1 - eps) * np.log(sigma) - eps * np.log1p(-sigma)
  slope = -0.3 * ((1 - eps) * (1 - sigma) - eps * sigma)
  if cfg.form == IPO():
    value, slope = (h - 1 / 0.6) ** 2, 2 * (h - 1 / 0.6)

  def f(chosen, rejected):
    return loss(CHOSEN._replace(logp_B=chosen), REJECTED._replace(logp_B=rejected), cfg)

  logps = [jnp.asarray(x.logp_B) for x in sides]
  (total, weight), metrics = jax.jit(f)(*logps)
  grads = jax.jit(jax.grad(lambda *x: f(*x)[0][0], (0, 1)))(*logps)
  np.testing.assert_allclose(total, value.sum(), rtol=1e-6)
  np.testing.assert_allclose(grads[0], slope / n[0], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(grads[1], -slope / n[1], rtol=1e-5, atol=1e-7)
  got = {name: x / n for name, (x, n) in metrics.items()}
  want = {'accuracy': (h > 0).mean(), 'margin': 0.3 * h.mean()}
  want |= {'chosen_reward': 0.3 * s[0].mean(), 'rejected_reward': 0.3 * s[1].mean()}
  assert weight == 5 and got.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)


def test_nll_is_the_chosen_loss_a_token_whatever_the_rejected_one_is():
  plain, with_nll = DPO(0.3), DPO(0.3, nll=0.5)
  mask_B = jnp.array([True, True, False, True, True])

  def more(chosen, rejected):
    sides = CHOSEN._replace(logp_B=chosen), REJECTED._replace(logp_B=rejected)
    return loss(*sides, with_nll, mask_B)[0][0] - loss(*sides, plain, mask_B)[0][0]

  value, grads = jax.value_and_grad(more, (0, 1))(CHOSEN.logp_B, REJECTED.logp_B)
  nll_B = np.where(mask_B, -CHOSEN.logp_B / CHOSEN.tokens_B, 0)
  np.testing.assert_allclose(value, 0.5 * nll_B.sum(), rtol=1e-6)
  np.testing.assert_allclose(grads[0], np.where(mask_B, -0.5 / CHOSEN.tokens_B, 0), atol=1e-7)
  np.testing.assert_allclose(grads[1], np.zeros(5), atol=1e-7)
  metric, count = loss(CHOSEN, REJECTED, with_nll, mask_B)[1]['chosen_nll']
  np.testing.assert_allclose([metric, count], [nll_B.sum(), 4], rtol=1e-6)
  with pytest.raises(ValueError, match='nll is -1'):
    DPO(nll=-1)


def population_grad(logits, ref, preference, cfg):
  """Gradient in the logits of the expected loss over all ordered pairs of four answers."""
  pairs = np.array([p for p in itertools.product(range(4), repeat=2) if p[0] != p[1]])

  weight = jnp.asarray(preference[tuple(pairs.T)])

  def f(logits):
    ratio = jax.nn.log_softmax(logits) - jax.nn.log_softmax(ref)
    zero, one = jnp.zeros(1), jnp.ones(1)
    losses = jax.vmap(
      lambda won, lost: loss(Scored(won[None], zero, one), Scored(lost[None], zero, one), cfg)[0][0]
    )
    return jnp.dot(weight, losses(*ratio[pairs.T]))

  return jax.jit(jax.grad(f))(jnp.asarray(logits))


def test_the_minimum_over_bradley_terry_preferences_is_the_tilted_reference():
  """π ∝ π_ref exp(r/β) is where the expected gradient vanishes, and no other place."""
  ref, reward = np.random.default_rng(1).normal(size=(2, 4))
  preference = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
  best = jnp.asarray(ref + reward / 0.5)
  grad = population_grad(best, ref, preference, DPO(0.5))
  np.testing.assert_allclose(grad, 0, atol=1e-12)
  assert np.abs(population_grad(ref, ref, preference, DPO(0.5))).max() > 0.1


def test_ipo_s_minimum_is_bounded_by_the_preference():
  """Two answers, the first preferred with probability p: h* = (2p − 1)/(2β), finite for p = 1."""
  cfg, ref = DPO(0.5, IPO()), jnp.zeros(4)
  for p in (0.5, 0.8, 1.0):
    preference = np.zeros((4, 4))
    preference[0, 1], preference[1, 0] = p, 1 - p
    best = jnp.array([(2 * p - 1) / (2 * 0.5), 0.0, 0.0, 0.0])
    np.testing.assert_allclose(population_grad(best, ref, preference, cfg), 0, atol=1e-12)


@pytest.mark.parametrize('cfg', CONFIGS)
def test_contract_01_parts_add_up_and_rows_masked_out_are_nothing(cfg):
  mask = jnp.array([True, True, False, True, True])
  junk = lambda x: jnp.where(mask, x, jnp.nan)

  def f(logp, rows, clean, mask=None):
    chosen = CHOSEN._replace(logp_B=logp)
    if not clean:
      chosen = jax.tree.map(junk, chosen)
    sides = (jax.tree.map(lambda x: x[rows], side) for side in (chosen, REJECTED))
    return loss(*sides, cfg, mask)[0]

  grad = jax.jit(jax.value_and_grad(f, has_aux=True), static_argnums=2)
  dirty = grad(CHOSEN.logp_B, np.arange(5), False, mask)
  parts = [grad(CHOSEN.logp_B, np.array(rows), True) for rows in ([0, 1, 3], [4])]
  whole = jax.tree.map(lambda a, b: a + b, *parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dirty, whole)


def test_the_reference_is_a_constant():
  f = lambda ref: loss(CHOSEN._replace(ref_B=ref), REJECTED, DPO())[0][0]
  np.testing.assert_array_equal(jax.grad(f)(CHOSEN.ref_B), 0)


def test_configs_refuse_what_cannot_work():
  with pytest.raises(ValueError, match='beta is 0'):
    DPO(0)
  with pytest.raises(ValueError, match=r'smoothing is 0\.5'):
    Sigmoid(0.5)
