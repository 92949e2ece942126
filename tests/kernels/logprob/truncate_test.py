"""Temperature, top-k and top-p: which tokens stay."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.logprob.truncate import FILLER, Sampling, restrict, support, truncate

LOGITS = np.log([[0.5, 0.25, 0.125, 0.125]]).astype('f4')


@pytest.mark.parametrize(
  'sampling, kept',
  [
    (Sampling(), [1, 1, 1, 1]),
    (Sampling(top_k=4), [1, 1, 1, 1]),
    (Sampling(top_k=9), [1, 1, 1, 1]),
    (Sampling(top_k=2), [1, 1, 0, 0]),
    (Sampling(top_k=3), [1, 1, 1, 1]),  # what equals the k-th stays
    (Sampling(top_p=0.4), [1, 0, 0, 0]),
    (Sampling(top_p=0.6), [1, 1, 0, 0]),  # the token that crosses p stays
    (Sampling(top_k=2, top_p=0.6), [1, 0, 0, 0]),  # p of what top-k left: 2/3 and 1/3
    (Sampling(temperature=0.5, top_p=0.7), [1, 0, 0, 0]),  # tempered first: 0.73, 0.18, …
    (Sampling(top_p=1e-9), [1, 0, 0, 0]),
  ],
)
def test_who_stays(sampling, kept):
  z = truncate(jnp.asarray(LOGITS), sampling)
  np.testing.assert_array_equal(np.isfinite(z), [np.array(kept, bool)])
  want = (LOGITS / sampling.temperature)[np.isfinite(z)]
  np.testing.assert_allclose(z[np.isfinite(z)], want, rtol=1e-6)


def test_greedy_scores_as_temperature_one():
  np.testing.assert_array_equal(truncate(jnp.asarray(LOGITS), Sampling(temperature=0)), LOGITS)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  seed=st.integers(0, 999), p=st.sampled_from([0.1, 0.5, 0.9, 0.99]), k=st.sampled_from([0, 1, 3])
)
def test_the_kept_set_is_the_smallest_that_reaches_p(seed, p, k):
  z_V = np.random.default_rng(seed).normal(size=11).astype('f4') * 3
  kept = np.isfinite(truncate(jnp.asarray(z_V)[None], Sampling(top_k=k, top_p=p)))[0]
  best = np.sort(z_V)[::-1][: k or None]
  mass = np.cumsum(np.exp(best) / np.exp(best).sum())
  assert z_V[kept].min() > z_V[~kept].max(initial=-np.inf)
  assert mass[kept.sum() - 1] >= p - 1e-5
  assert kept.sum() == 1 or mass[kept.sum() - 2] < p + 1e-5


def test_the_kept_set_is_constant_under_the_gradient():
  f = lambda z: jnp.where(jnp.isfinite(z), z, 0).sum()
  grad = jax.grad(lambda z: f(truncate(z, Sampling(top_k=2, top_p=0.9))))(jnp.asarray(LOGITS))
  np.testing.assert_array_equal(grad, [[1, 1, 0, 0]])


@pytest.mark.parametrize('bad', [{'temperature': -1}, {'top_k': -1}, {'top_p': 0}, {'top_p': 1.1}])
def test_impossible_settings_are_refused(bad):
  with pytest.raises(ValueError, match='need temperature ≥ 0, top_k ≥ 0, 0 < top_p ≤ 1; got'):
    Sampling(**bad)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  seed=st.integers(0, 999),
  p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
  k=st.sampled_from([1, 3, 11, 20]),
)
def test_the_support_is_the_kept_set_and_replays_it_on_other_logits(seed, p, k):
  z_CV = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 11)).astype('f4') * 3)
  sampling = Sampling(0.7, k, p)
  own, ids = np.asarray(truncate(z_CV, sampling)), np.asarray(support(z_CV, sampling))
  assert ids.shape == (3, min(k, 11)) and ids.dtype == np.int32
  np.testing.assert_array_equal(restrict(z_CV, ids, 0.7), own)
  for row, own_V in zip(ids, own):
    n = np.isfinite(own_V).sum()
    assert row[:n].tolist() == np.argsort(-own_V)[:n].tolist() and (row[n:] == FILLER).all()
  other = restrict(-z_CV, ids, 0.7)
  np.testing.assert_array_equal(np.isfinite(other), np.isfinite(own))


def test_a_support_never_has_more_than_k():
  ids = support(jnp.asarray(LOGITS), Sampling(top_k=3))
  assert ids.tolist() == [[0, 1, 2]]  # of the two last, equal ones the first
  assert np.isfinite(truncate(jnp.asarray(LOGITS), Sampling(top_k=3))).sum() == 4
  with pytest.raises(ValueError, match='a kept set of bounded size needs top_k > 0'):
    support(jnp.asarray(LOGITS), Sampling(top_p=0.9))


def test_fillers_alone_restrict_nothing():
  ids = jnp.array([[FILLER, FILLER], [2, FILLER]])
  z = restrict(jnp.asarray(LOGITS).repeat(2, 0), ids, 0.5)
  np.testing.assert_array_equal(np.isfinite(z), [[1, 1, 1, 1], [0, 0, 1, 0]])
  np.testing.assert_array_equal(z[0], LOGITS[0] / 0.5)
