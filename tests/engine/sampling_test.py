"""Sampled frequencies are the probabilities, log-probabilities those of the same distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine.sampling import BLOCK, draw, invert, sample, sample_within
from r1jax.kernels.logprob.truncate import FILLER, Sampling

LOGITS = np.array([1.5, 0.3, -0.2, 1.1, -2.0, 0.8])
N = 20_000


def softmax(z):
  p = np.exp(z - z.max())
  return p / p.sum()


def kept(z, ids):
  return softmax(np.where(np.isin(np.arange(len(z)), ids), z, -np.inf))


@pytest.mark.parametrize(
  'sampling, expected',
  [
    (Sampling(), softmax(LOGITS)),
    (Sampling(0.5), softmax(LOGITS / 0.5)),
    (Sampling(1.0, top_k=3), kept(LOGITS, [0, 3, 5])),
    # 0.37, 0.25, 0.19 of the mass: the third crosses 0.75
    (Sampling(1.0, top_p=0.75), kept(LOGITS, [0, 3, 5])),
    (Sampling(0.5, top_k=4, top_p=0.8), kept(LOGITS / 0.5, [0, 3])),
  ],
)
def test_frequencies_match_probabilities(sampling, expected):
  """χ² of N draws, at the 0.1 % point of its degrees of freedom."""
  keys = prng.fold_rows(jax.random.key(1), np.arange(N))
  tokens, logp = sample(jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (N, 6)), keys, sampling)
  seen = np.bincount(np.asarray(tokens), minlength=6)
  possible = expected > 0
  assert seen[~possible].sum() == 0
  chi2 = ((seen - N * expected)[possible] ** 2 / (N * expected)[possible]).sum()
  assert chi2 < {1: 10.8, 2: 13.8, 5: 20.5}[possible.sum() - 1]
  np.testing.assert_allclose(logp, np.log(expected[np.asarray(tokens)]), atol=1e-5)


@pytest.mark.parametrize('sampling', [Sampling(0.7, 20, 0.9), Sampling(1.3, 5), Sampling(0.0, 3)])
def test_drawing_within_a_support_is_drawing_from_the_truncated_distribution(sampling):
  """The same tokens and log-probabilities, each token in the ids beside it."""
  logits = jnp.asarray(np.random.default_rng(3).normal(size=(200, 700)).astype('f4') * 2)
  keys = prng.fold_rows(jax.random.key(2), np.arange(200))
  both = lambda z, k: (sample(z, k, sampling), sample_within(z, k, sampling))
  (tokens, logp), (within, found, ids) = jax.jit(both)(logits, keys)
  np.testing.assert_array_equal(within, tokens)
  np.testing.assert_allclose(found, logp, atol=1e-6)
  assert ids.shape == (200, sampling.top_k)
  assert ((ids == within[:, None]).sum(-1) == 1).all()
  assert bool((ids == FILLER).any()) == (sampling.top_p < 1)


def test_equal_logits_at_the_edge_are_drawn_from_the_support_alone():
  """Of six equal tokens three are kept: those three come, each a third of the time."""
  keys = prng.fold_rows(jax.random.key(1), np.arange(N))
  tokens, logp, ids = sample_within(jnp.zeros((N, 6)), keys, Sampling(top_k=3))
  seen = np.bincount(tokens, minlength=6)
  assert (np.asarray(ids) == [0, 1, 2]).all() and not seen[3:].any()
  assert ((seen[:3] - N / 3) ** 2 / (N / 3)).sum() < 13.8  # χ² of 2 degrees at 0.1 %
  np.testing.assert_allclose(logp, -np.log(3), rtol=1e-6)


def test_greedy_takes_the_most_likely_and_scores_it_at_temperature_1():
  logits = jnp.asarray(np.stack([LOGITS, -LOGITS]), jnp.float32)
  keys = prng.fold_rows(jax.random.key(0), np.arange(2))
  tokens, logp = sample(logits, keys, Sampling(temperature=0.0))
  assert tokens.tolist() == [0, 4]
  expected = [np.log(softmax(LOGITS)[0]), np.log(softmax(-LOGITS)[4])]
  np.testing.assert_allclose(logp, expected, rtol=1e-5)


def test_draws_over_many_blocks_have_their_probabilities_and_depend_on_the_row_alone():
  """A vocabulary of several blocks, most of it without mass; the same rows in another batch."""
  V, N = 3 * BLOCK + 17, 8000
  z = np.full(V, -np.inf, 'f4')
  ids = [0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 9, V - 1]
  z[ids] = LOGITS
  keys = prng.fold_rows(jax.random.key(2), np.arange(N))
  tokens = np.asarray(draw(jnp.broadcast_to(z, (N, V)), keys))
  assert set(tokens) <= set(ids)
  seen, expected = np.array([(tokens == i).sum() for i in ids]), N * softmax(LOGITS)
  assert ((seen - expected) ** 2 / expected).sum() < 20.5  # χ² of 5 degrees at 0.1 %
  part = np.asarray(draw(jnp.broadcast_to(z, (7, V)), keys[100:107]))
  np.testing.assert_array_equal(part, tokens[100:107])


def test_no_index_without_mass_is_ever_drawn():
  mass = jnp.asarray([[0.0, 1.0, 0.0], [0.0, 0.0, 1e-30], [2.0, 0.0, 0.0]])
  for u in (0.0, 0.5, 1 - 2**-24):
    assert invert(mass, jnp.full(3, u)).tolist() == [1, 2, 0]
