"""The clipped surrogate and its aggregation against numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos.surrogate import (
  Clip,
  ConstantLength,
  SequenceMean,
  SequenceRatio,
  TokenMean,
  TokenRatio,
  aggregate,
  clipped,
  clipped_surrogate,
  denominator,
  masked,
  ratios,
  weights_BL,
)

HOWS = [TokenMean(), SequenceMean(), ConstantLength(8)]
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], bool)
LOSS = np.random.default_rng(0).normal(size=MASK.shape).astype(np.float32)


def surrogate_and_grad(ratio, adv, clip):
  def f(logp_BL):
    loss_BL, clipped_BL = clipped_surrogate(logp_BL, jnp.zeros((1, 1)), jnp.array([adv]), clip)
    return loss_BL[0, 0], clipped_BL[0, 0]

  (loss, clipped), grad = jax.value_and_grad(f, has_aux=True)(jnp.log(jnp.array([[ratio]])))
  return float(loss), bool(clipped), float(grad[0, 0])


@pytest.mark.parametrize('clip', [Clip(), Clip(0.2, 0.28), Clip(10, 10), Clip(3e-4, 4e-4)])
@pytest.mark.parametrize('adv', [-1.5, 0.0, 2.0])
@pytest.mark.parametrize('ratio', [0.05, 0.7, 0.9999, 1.0, 1.25, 2.0, 10.9, 11.1, 30.0])
def test_is_ppo_s_minimum(ratio, adv, clip):
  bounded = np.clip(ratio, 1 - clip.low, 1 + clip.high)
  binds = (adv > 0 and ratio > 1 + clip.high) or (adv < 0 and ratio < 1 - clip.low)
  loss, clipped, grad = surrogate_and_grad(ratio, adv, clip)
  np.testing.assert_allclose(loss, -min(ratio * adv, bounded * adv), rtol=1e-5)
  assert clipped == binds
  np.testing.assert_allclose(grad, 0 if binds else -ratio * adv, rtol=1e-5)


def test_r1_s_clip_binds_only_above_11_for_good_samples():
  ratios = [1e-3, 0.5, 1.0, 10.9, 11.1, 100.0]
  binds = {a: [surrogate_and_grad(r, a, Clip(10, 10))[1] for r in ratios] for a in (-1.0, 1.0)}
  assert binds == {-1.0: [False] * 6, 1.0: [False] * 4 + [True] * 2}


def test_the_old_policy_is_a_constant():
  def f(old_BL):
    return clipped_surrogate(jnp.zeros((2, 3)), old_BL, jnp.ones(2), Clip())[0].sum()

  np.testing.assert_array_equal(jax.grad(f)(jnp.full((2, 3), 0.1)), 0)


@pytest.mark.parametrize('junk', [0, np.nan, np.inf])
def test_ratios_by_token_and_by_sequence(junk):
  """GSPO: the geometric mean over a row's counted tokens; padding has ratio 1 and no say."""
  log_BL = np.where(MASK, LOSS, junk)
  args = jnp.asarray(log_BL), jnp.zeros(MASK.shape), jnp.asarray(MASK)
  token_BL, sequence_BL = np.ones(MASK.shape), np.ones(MASK.shape)
  for i, t in np.argwhere(MASK):
    token_BL[i, t] = np.exp(LOSS[i, t])
    sequence_BL[i, t] = np.exp(LOSS[i][MASK[i]]).prod() ** (1 / MASK[i].sum())
  np.testing.assert_allclose(ratios(*args, TokenRatio()), token_BL, rtol=1e-5)
  np.testing.assert_allclose(ratios(*args, SequenceRatio()), sequence_BL, rtol=1e-5)


def test_clipped_with_an_advantage_for_each_token():
  """Per-token advantages, as PPO has them, are those of one-token sequences."""
  ratio_BL, adv_BL = np.exp(LOSS), np.random.default_rng(1).normal(size=LOSS.shape)
  loss_BL, binds_BL = clipped(jnp.asarray(ratio_BL), jnp.asarray(adv_BL, jnp.float32), Clip())
  bounded_BL = np.clip(ratio_BL, 0.8, 1.2)
  np.testing.assert_allclose(
    loss_BL, -np.minimum(ratio_BL * adv_BL, bounded_BL * adv_BL), rtol=1e-5
  )
  np.testing.assert_array_equal(binds_BL, (bounded_BL - ratio_BL) * adv_BL < 0)
  assert 0 < binds_BL.sum() < binds_BL.size


@pytest.mark.parametrize('shape', [(16,), (4, 4)])
def test_masked_is_a_sum_and_a_count(shape):
  x = jnp.asarray(np.where(MASK, LOSS, np.nan).reshape(shape))
  total, count = masked(x, jnp.asarray(MASK.reshape(shape)))
  assert count == MASK.sum() and count.dtype == x.dtype
  np.testing.assert_allclose(total, LOSS[MASK].sum(), rtol=1e-6)


def oracle(loss_BL, mask_BL, how):
  rows = [loss[mask].astype(np.float64) for loss, mask in zip(loss_BL, mask_BL) if mask.any()]
  match how:
    case TokenMean():
      return np.concatenate(rows).mean()
    case SequenceMean():
      return np.mean([row.mean() for row in rows])
    case ConstantLength(n):
      return np.mean([row.sum() / n for row in rows])


@pytest.mark.parametrize('how', HOWS)
def test_aggregate_is_the_mean_that_its_name_says(how):
  total, weight = aggregate(jnp.asarray(LOSS), jnp.asarray(MASK), how)
  np.testing.assert_allclose(total / weight, oracle(LOSS, MASK, how), rtol=1e-6)


@pytest.mark.parametrize('how', HOWS)
def test_weights_and_denominator_are_what_aggregate_uses(how):
  mask_BL = jnp.asarray(MASK)
  total, weight = aggregate(jnp.asarray(LOSS), mask_BL, how)
  np.testing.assert_allclose((weights_BL(mask_BL, how) * LOSS).sum(), total, rtol=1e-6)
  assert weight == denominator(mask_BL, how)


@pytest.mark.parametrize('how', HOWS)
@pytest.mark.parametrize('junk', [np.nan, np.inf, 1e30])
def test_contract_01_padding_contributes_nothing(how, junk):
  """Neither junk under padding, nor padded columns, nor padded rows, change sum or weight."""
  want = aggregate(jnp.asarray(LOSS), jnp.asarray(MASK), how)
  loss_BL = np.pad(np.where(MASK, LOSS, junk), ((0, 2), (0, 3)), constant_values=junk)
  mask_BL = np.pad(MASK, ((0, 2), (0, 3)))
  got = aggregate(jnp.asarray(loss_BL), jnp.asarray(mask_BL), how)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('how', HOWS)
def test_nothing_to_count_is_weight_zero(how):
  got = aggregate(jnp.asarray(LOSS), jnp.zeros(MASK.shape, bool), how)
  np.testing.assert_array_equal(got, (0, 0))


def test_configs_refuse_what_cannot_work():
  with pytest.raises(ValueError, match='low=0'):
    Clip(low=0)
  with pytest.raises(ValueError, match='n is 0'):
    ConstantLength(0)
