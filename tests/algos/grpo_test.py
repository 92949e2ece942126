"""The GRPO loss on a tabular policy: closed-form gradients; contracts 1 and 9."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos.advantages import Centered, Std, group_advantages
from r1jax.algos.grpo import GRPO, completion_mask, loss, loss_mask
from r1jax.algos.kl import K2, K3, Unbiased, k3
from r1jax.algos.offpolicy import SequenceMask, Truncated
from r1jax.algos.surrogate import Clip, ConstantLength, SequenceMean, SequenceRatio, TokenMean

B, L, S, V = 8, 6, 4, 5
ROWS = np.arange(B)
RNG = np.random.default_rng(0)
LENGTH = np.array([6, 1, 3, 4, 2, 6, 0, 5])
STATE, TOKEN = RNG.integers(S, size=(B, L)), RNG.integers(V, size=(B, L))
LOGITS, REF, OLD = RNG.normal(size=(3, S, V))
ADV = np.array(RNG.normal(size=B))
SAMPLED = OLD + 0.5 * RNG.normal(size=(S, V))

R1 = GRPO(clip=Clip(10, 10), kl=K3())
DAPO = GRPO(clip=Clip(0.2, 0.28), beta=0, aggregate=TokenMean(), truncated='mask')
DR_GRPO = GRPO(beta=0, scale=Centered(), aggregate=ConstantLength(L))
GSPO = GRPO(clip=Clip(0.3, 0.4), beta=0.1, ratio=SequenceRatio())
CORRECTED = GRPO(beta=0.1, old='recomputed', drop=SequenceMask(0.2), correct=Truncated(1.5))
K2_BY_TOKEN = GRPO(kl=K2(), beta=1.0, aggregate=TokenMean())
FAMILY = [GRPO(beta=0.1), R1, DAPO, DR_GRPO, K2_BY_TOKEN, GSPO, CORRECTED]


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def logp_BL(logits, rows=slice(None)):
  return jax.nn.log_softmax(jnp.asarray(logits))[jnp.asarray(STATE)[rows], jnp.asarray(TOKEN)[rows]]


def mask():
  return completion_mask(jnp.asarray(LENGTH), L)


def pair(logits, cfg, rows=slice(None), old=OLD):
  """((sum, weight), metrics) of some rows of the batch."""
  logp, old, ref = logp_BL(logits, rows), logp_BL(old, rows), logp_BL(REF, rows)
  sampled = logp_BL(SAMPLED, rows)
  return loss(logp, old, ref, jnp.asarray(ADV)[rows], mask()[rows], cfg, sampled)


@functools.partial(jax.jit, static_argnames='cfg')
def sum_and_grad(cfg, rows=ROWS, old=OLD):
  (total, weight), grad = jax.value_and_grad(
    lambda logits: pair(logits, cfg, rows, old)[0], has_aux=True
  )(jnp.asarray(LOGITS))
  return total, weight, grad


def score(i, t):
  """∇ log π(token) in the logits: onehot − π, in the row of its state."""
  p = np.exp(LOGITS[STATE[i, t]])
  out = np.zeros((S, V))
  out[STATE[i, t]] = -p / p.sum()
  out[STATE[i, t], TOKEN[i, t]] += 1
  return out


def policy_gradient(token_weight):
  """−Σ_it w_it A_i ∇ log π_it over the tokens within each length."""
  return -sum(
    token_weight(i) * ADV[i] * score(i, t) for i in range(B) for t in range(int(LENGTH[i]))
  )


@pytest.mark.parametrize(
  'how, token_weight',
  [
    (SequenceMean(), lambda i: 1 / LENGTH[i] / 7),
    (TokenMean(), lambda i: 1 / LENGTH.sum()),
    (ConstantLength(L), lambda i: 1 / L / 7),
  ],
)
def test_on_policy_it_is_the_policy_gradient(how, token_weight):
  """Seven of the eight sequences have tokens; the empty one is not counted."""
  _, weight, grad = sum_and_grad(GRPO(beta=0, aggregate=how), old=LOGITS)
  np.testing.assert_allclose(grad / weight, policy_gradient(token_weight), rtol=1e-12, atol=1e-15)


def test_the_kl_term_joins_token_by_token():
  """On-policy, β times the k3 gradient (1 − π_ref/π) ∇ log π is added, averaged like the rest."""
  cfg = GRPO(beta=0.3, kl=K3())
  _, weight, grad = sum_and_grad(cfg, old=LOGITS)
  ratio_BL = np.exp(logp_BL(REF) - logp_BL(LOGITS))
  want = sum(
    (0.3 * (1 - ratio_BL[i, t]) - ADV[i]) / LENGTH[i] / 7 * score(i, t)
    for i in range(B)
    for t in range(int(LENGTH[i]))
  )
  np.testing.assert_allclose(grad / weight, want, rtol=1e-12, atol=1e-15)


def test_gspo_is_the_policy_gradient_scaled_by_the_sequence_ratio():
  """∇ = −s_i A_i 1/|o_i| Σ_t ∇ log π_it where the clip does not bind, 0 where it does."""
  cfg = dataclasses.replace(GSPO, beta=0)
  _, weight, grad = sum_and_grad(cfg)
  log_BL = np.asarray(logp_BL(LOGITS) - logp_BL(OLD))
  s_B = np.array([np.exp(row[:n].mean()) if n else 1.0 for row, n in zip(log_BL, LENGTH)])
  binds_B = ((ADV > 0) & (s_B > 1.4)) | ((ADV < 0) & (s_B < 0.7))
  assert 0 < binds_B.sum() < 6
  want = policy_gradient(lambda i: 0 if binds_B[i] else s_B[i] / LENGTH[i] / 7)
  np.testing.assert_allclose(grad / weight, want, rtol=1e-12, atol=1e-15)


def test_off_policy_corrections_scale_the_surrogate_and_nothing_else():
  """m·min(π_old/π_sampled, cap) times each token's surrogate; KL and weight are as without."""
  cfg = dataclasses.replace(CORRECTED, clip=Clip(100, 100), aggregate=TokenMean())
  counted_BL = np.asarray(mask())
  logp, old, sampled = (np.asarray(logp_BL(x)) for x in (LOGITS, OLD, SAMPLED))
  far_B = np.array([(sampled - logp)[i, :n].sum() > 0.2 * n for i, n in enumerate(LENGTH)])
  m_B, w_BL = np.where(far_B & (ADV < 0), 0, 1), np.minimum(np.exp(old - sampled), 1.5)
  assert 0 < m_B.sum() < B
  surrogate_BL = counted_BL * np.exp(logp - old) * ADV[:, None]
  (total, count), metrics = pair(LOGITS, cfg)
  (plain, plain_count), _ = pair(LOGITS, dataclasses.replace(cfg, drop=None, correct=None))
  moved = (surrogate_BL * (1 - m_B[:, None] * w_BL)).sum()
  np.testing.assert_allclose(total, plain + moved, rtol=1e-12)
  assert count == plain_count == LENGTH.sum()
  assert metrics['dropped'] == ((1 - m_B[LENGTH > 0]).sum(), 7)
  got = np.divide(*metrics['importance_weight'])
  np.testing.assert_allclose(got, w_BL[counted_BL].mean(), rtol=1e-12)


def test_a_correction_without_the_rollout_s_log_probs_is_refused():
  arrays = logp_BL(LOGITS), logp_BL(OLD), logp_BL(REF), jnp.asarray(ADV), mask()
  with pytest.raises(ValueError, match='sampled_BL is None'):
    loss(*arrays, CORRECTED)
  with pytest.raises(ValueError, match="old='recomputed'"):
    GRPO(correct=Truncated())


def parts_of(cfg, order, sizes):
  """(sum, weight, gradient) of microbatches of these sizes, their rows taken in this order."""
  return [sum_and_grad(cfg, rows) for rows in np.split(np.array(order), np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize('cfg', FAMILY)
@given(order=st.permutations(range(B)), sizes=st.sampled_from([[1] * 8, [4, 4], [1, 4, 1, 1, 1]]))
def test_contract_01_any_microbatch_split_gives_the_same_gradient(cfg, order, sizes):
  total, weight, grad = sum_and_grad(cfg)
  parts = parts_of(cfg, order, sizes)
  totals, weights, grads = (sum(x) for x in zip(*parts))
  np.testing.assert_allclose(totals / weights, total / weight, rtol=1e-12)
  np.testing.assert_allclose(grads / weights, grad / weight, rtol=1e-12, atol=1e-14)


def test_contract_01_a_mean_of_means_would_differ():
  parts = parts_of(DAPO, ROWS, [4, 4])
  wrong = np.mean([grad / weight for _, weight, grad in parts], axis=0)
  _, weight, grad = sum_and_grad(DAPO)
  assert np.abs(wrong - grad / weight).max() > 1e-3


@pytest.mark.parametrize('cfg', FAMILY)
@pytest.mark.parametrize('junk', [np.nan, np.inf, -np.inf, 1e4])
def test_contract_01_padding_reaches_neither_value_nor_gradient(cfg, junk):
  def f(logp_BL, old_BL, ref_BL, sampled_BL):
    adv_B = jnp.asarray(ADV)
    (total, weight), metrics = loss(logp_BL, old_BL, ref_BL, adv_B, mask(), cfg, sampled_BL)
    return total, (weight, metrics)

  clean = [logp_BL(x) for x in (LOGITS, OLD, REF, SAMPLED)]
  dirty = [jnp.where(mask(), x, junk) for x in clean]
  want, got = (jax.value_and_grad(f, has_aux=True)(*x) for x in (clean, dirty))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  np.testing.assert_array_equal(np.where(mask(), 0, got[1]), 0)


def test_contract_09_masks_come_from_lengths_and_never_from_ids():
  """The last token may equal padding; it counts, since the length says so."""
  got = completion_mask(jnp.array([0, 2, 4]), 4)
  np.testing.assert_array_equal(got, [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
  got = completion_mask(jnp.array([2, 1, 3]), 5, start_B=jnp.array([0, 3, 2]))
  np.testing.assert_array_equal(got, [[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 1, 1]])
  got = completion_mask(jnp.array([1, 2]), 3, start_B=1)
  np.testing.assert_array_equal(got, [[0, 1, 0], [0, 1, 1]])


def test_contract_09_truncated_answers_count_or_are_masked_as_configured():
  truncated_B = jnp.asarray(LENGTH == L)
  counted = loss_mask(mask(), truncated_B, GRPO(truncated='count'))
  masked = loss_mask(mask(), truncated_B, GRPO(truncated='mask'))
  np.testing.assert_array_equal(counted, mask())
  np.testing.assert_array_equal(masked.sum(axis=1), np.where(LENGTH == L, 0, LENGTH))


@pytest.mark.parametrize('how', [TokenMean(), SequenceMean(), ConstantLength(L)])
def test_a_masked_sequence_is_as_if_it_had_not_been_there(how):
  cfg, keep = GRPO(aggregate=how, truncated='mask'), LENGTH < L
  arrays = [logp_BL(x) for x in (LOGITS, OLD, REF)] + [jnp.asarray(ADV)]
  got = loss(*arrays, loss_mask(mask(), jnp.asarray(~keep), cfg), cfg)
  want = loss(*(x[keep] for x in arrays), mask()[keep], cfg)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


def test_metrics_are_token_means():
  _, metrics = pair(LOGITS, R1)
  m = np.asarray(mask())
  logp, old, ref = (np.asarray(logp_BL(x))[m] for x in (LOGITS, OLD, REF))
  adv, ratio = np.broadcast_to(ADV[:, None], (B, L))[m], np.exp(logp - old)
  want = {
    'kl': np.exp(ref - logp) - 1 - (ref - logp),
    'kl_old': ratio - 1 - np.log(ratio),
    'ratio': ratio,
    'logp_difference': np.abs(logp - old),
    'clip_fraction': (adv > 0) & (ratio > 11),
  }
  assert metrics.keys() == want.keys()
  for name, (total, weight) in metrics.items():
    assert weight == m.sum()
    np.testing.assert_allclose(total / weight, want[name].mean(), rtol=1e-12, err_msg=name)


def test_without_a_reference():
  arrays = logp_BL(LOGITS), logp_BL(OLD), None, jnp.asarray(ADV), mask()
  (total, _), metrics = loss(*arrays, DAPO)
  assert 'kl' not in metrics
  np.testing.assert_allclose(total, pair(LOGITS, DAPO)[0][0], rtol=1e-12)
  with pytest.raises(ValueError, match='ref_BL is None'):
    loss(*arrays, R1)


def test_one_step_reads_from_rewards_to_loss():
  """All groups of equal rewards: no surrogate gradient is left, only the KL's."""
  cfg = GRPO(group=4, beta=0.1, kl=Unbiased())
  adv_PG = group_advantages(jnp.array([[1.0] * 4, [0.1] * 4]), cfg.scale)
  arrays = logp_BL(LOGITS), logp_BL(OLD), logp_BL(REF), adv_PG.reshape(-1), mask()
  (total, weight), _ = loss(*arrays, dataclasses.replace(cfg, aggregate=TokenMean()))
  ratio_BL = jnp.exp(arrays[0] - arrays[1])
  want = 0.1 * (ratio_BL * k3(arrays[0], arrays[2]))[mask()].mean()
  np.testing.assert_allclose(total / weight, want, rtol=1e-12)


def test_the_config_is_hashable_and_strict():
  assert len({GRPO(), GRPO(), GRPO(scale=Std(1e-4))}) == 2
  with pytest.raises(ValueError, match='group is 0'):
    GRPO(group=0)
  with pytest.raises(ValueError, match='beta is -1'):
    GRPO(beta=-1)
