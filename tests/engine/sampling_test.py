"""Sampled frequencies are the probabilities, log-probabilities those of the same distribution."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine.sampling import (
  BLOCK,
  MOST,
  Counts,
  Kinds,
  RequestSampling,
  controls,
  count,
  count_ahead,
  draw,
  invert,
  sample,
  sample_rows,
  sample_within,
  shape_rows,
  tally,
)
from r1jax.kernels.logprob import logprobs
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


# Parameters a row.

ROWS = (
  RequestSampling(),
  RequestSampling(0.7, 20, 0.9),
  RequestSampling(0.0, 3),
  RequestSampling(1.3, 5),
  RequestSampling(1.0, 0, 0.6),
  RequestSampling(0.6, 900, 0.95),
  RequestSampling(0.0),
)
rows_in_turn = jax.jit(sample_rows, static_argnums=3)


def static(r):
  return Sampling(r.temperature, r.top_k, r.top_p)


def normal(rows, vocab, seed=3, scale=2.0):
  return np.random.default_rng(seed).normal(size=(rows, vocab)).astype('f4') * scale


def test_contract_03_rows_in_one_batch_draw_and_score_as_with_their_sampling_alone():
  """Tokens and log-probabilities of `sample`; the last are those of the trainer's fused head."""
  x, w = normal(140, 8, scale=1), normal(8, 700, seed=4)
  logits, keys = jnp.asarray(x @ w), prng.fold_rows(jax.random.key(2), np.arange(140))
  asked = ROWS * 20
  drawn = rows_in_turn(logits, keys, *controls(asked))
  assert drawn.support_BK is None
  for i, row in enumerate(ROWS):
    at = slice(i, None, len(ROWS))
    tokens, logp = jax.jit(sample, static_argnums=2)(logits[at], keys[at], static(row))
    np.testing.assert_array_equal(drawn.token_B[at], tokens)
    np.testing.assert_allclose(drawn.logp_B[at], logp, atol=1e-6)
    scored = logprobs(jnp.asarray(x[at])[None], jnp.asarray(w), tokens[None], static(row)).logp[0]
    np.testing.assert_allclose(drawn.logp_B[at], scored, atol=1e-4)


def test_contract_03_a_support_holds_bounded_rows_and_leaves_the_others_whole():
  """Rows with a top-k up to K: `sample_within`, fillers behind it. Others: fillers and `sample`."""
  logits = jnp.asarray(normal(140, 700))
  keys = prng.fold_rows(jax.random.key(2), np.arange(140))
  drawn = rows_in_turn(logits, keys, *controls(ROWS * 20, support=20))
  assert drawn.support_BK.shape == (140, 20)
  for i, row in enumerate(ROWS):
    at = slice(i, None, len(ROWS))
    bounded = 1 <= row.top_k <= 20
    tokens, logp, *ids = (sample_within if bounded else sample)(logits[at], keys[at], static(row))
    np.testing.assert_array_equal(drawn.token_B[at], tokens)
    np.testing.assert_allclose(drawn.logp_B[at], logp, atol=1e-6)
    kept = ids[0] if bounded else np.zeros((20, 0), int)
    fill = np.full((20, 20 - kept.shape[1]), FILLER)
    np.testing.assert_array_equal(drawn.support_BK[at], np.hstack([kept, fill]))


def test_equal_logits_at_the_edge_stay_in_all_but_a_support():
  asked = [RequestSampling(top_k=2), RequestSampling(top_k=2, min_p=0.5)]
  logits = jnp.asarray([[3.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
  z, _ = shape_rows(logits, *controls(asked))
  assert np.isfinite(z).tolist() == [[True, True, True, False], [True, False, True, True]]
  z, ids = shape_rows(logits, *controls(asked, support=3))
  assert np.isfinite(z).tolist() == [[True, True, False, False], [True, False, True, False]]
  assert ids.tolist() == [[0, 1, FILLER], [0, 2, FILLER]]


def by_transformers(logits, context, row):
  """One row's log-probabilities by the reference's processors, in its generation's order."""
  torch = pytest.importorskip('torch')
  made = pytest.importorskip('transformers.generation.logits_process')
  chain = [
    (row.repetition != 1, made.RepetitionPenaltyLogitsProcessor, row.repetition),
    (row.temperature != 1, made.TemperatureLogitsWarper, row.temperature),
    (row.top_k, made.TopKLogitsWarper, row.top_k),
    (row.top_p < 1, made.TopPLogitsWarper, row.top_p),
    (row.min_p, made.MinPLogitsWarper, row.min_p),
  ]
  z, ids = torch.tensor(logits)[None].double(), torch.tensor(context)[None]
  for on, kind, value in chain:
    z = kind(value)(ids, z) if on else z
  return torch.log_softmax(z[0], -1).numpy()


def test_each_rows_distribution_is_that_of_the_reference():
  """Random logits, parameters and contexts; with and without a support."""
  rng, V, B = np.random.default_rng(5), 300, 48
  asked = [
    RequestSampling(
      temperature=float(rng.choice([1.0, 0.3, 0.8, 1.5])),
      top_k=int(rng.choice([0, 1, 7, 50, 299])),
      top_p=float(rng.choice([1.0, 0.3, 0.9, 0.99])),
      min_p=float(rng.choice([0.0, 0.02, 0.3])),
      repetition=float(rng.choice([1.0, 1.3, 0.8])),
    )
    for _ in range(B)
  ]
  logits, context = normal(B, V, seed=6), rng.integers(0, V, (B, 40))
  counts = tally(jnp.asarray(context), np.full(B, 25), np.full(B, 40), V)
  expected = [by_transformers(*row) for row in zip(logits, context, asked, strict=True)]
  for support in (0, 50):
    args, kinds = controls(asked, support)
    assert kinds == Kinds(truncation=True, penalties=True, support=support)
    z, ids = shape_rows(jnp.asarray(logits), args, kinds, counts)
    np.testing.assert_allclose(jax.nn.log_softmax(z, -1), expected, atol=2e-5)
    for i, row in enumerate(asked if support else ()):
      kept = np.flatnonzero(np.isfinite(expected[i])) if 1 <= row.top_k <= support else []
      assert sorted(set(ids[i].tolist()) - {FILLER}) == list(kept)


def test_presence_and_frequency_are_subtracted_for_tokens_of_the_completion():
  """By the formula; tokens of the prompt are not counted, repetition sees both and comes first."""
  z = np.array([2.0, -1.0, 0.5, 3.0, 0.0])
  tokens, prompt = jnp.asarray([[0, 3, 3, 1, 3, 4]] * 2), np.array([2, 2])  # the last is padding
  counts = tally(tokens, prompt, np.array([5, 5]), 5)
  asked = [
    RequestSampling(1.0, presence=0.7, frequency=0.2),
    RequestSampling(2.0, 0, 1, 0, 2, 0, 1),
  ]
  shaped, _ = shape_rows(jnp.asarray(np.stack([z, z]), jnp.float32), *controls(asked), counts)
  np.testing.assert_allclose(shaped[0], z - [0, 0.9, 0, 1.1, 0], rtol=1e-6)
  np.testing.assert_allclose(shaped[1], (np.array([1, -2, 0.5, 1.5, 0]) - [0, 1, 0, 2, 0]) / 2)
  with pytest.raises(ValueError, match='tally'):
    shape_rows(jnp.zeros((2, 5)), *controls(asked))


def test_frequencies_of_a_row_with_everything_match_its_probabilities():
  """χ² over what is left of a small vocabulary."""
  row = RequestSampling(0.8, 5, 0.95, 0.1, 1.2, 0.3, 0.1)
  tokens = jnp.asarray([[0, 3, 3, 5]])
  counts = tally(tokens, np.array([1]), np.array([4]), 6)
  raw = np.where(LOGITS > 0, LOGITS / 1.2, LOGITS * 1.2)
  z = (np.where([1, 0, 0, 1, 0, 1], raw, LOGITS) - 0.3 * np.isin(range(6), [3, 5])) / 0.8
  z -= np.array([0, 0, 0, 0.2, 0, 0.1]) / 0.8
  # 0.43, 0.20, 0.18, 0.10, 0.06 before top-p: the fourth crosses 0.95 of the five best
  expected = by_transformers(z.astype('f4'), [0], RequestSampling(1.0, 5, 0.95, 0.1))
  wide = lambda a: jnp.broadcast_to(a, (N, *a.shape[1:]))
  keys = prng.fold_rows(jax.random.key(7), np.arange(N))
  args, kinds = controls([row])
  drawn = rows_in_turn(
    wide(jnp.asarray(LOGITS, jnp.float32)[None]), keys, jax.tree.map(wide, args), kinds,
    jax.tree.map(wide, counts),
  )  # fmt: skip
  seen, mean = np.bincount(drawn.token_B, minlength=6), N * np.exp(expected)
  assert not seen[mean == 0].any() and 2 < (mean > 0).sum() < 6
  limit = {2: 13.8, 3: 16.3, 4: 18.5}[(mean > 0).sum() - 1]  # the 0.1 % point
  assert ((seen - mean)[mean > 0] ** 2 / mean[mean > 0]).sum() < limit
  np.testing.assert_allclose(drawn.logp_B, expected[drawn.token_B], atol=1e-5)


def test_a_row_does_not_see_its_neighbours():
  """The same row alone, and among others of its batch: token, log-probability, ids."""
  asked = [*ROWS, RequestSampling(0.9, 10, 0.9, 0.05, 1.2, 0.5, 0.5)]
  logits, tokens = jnp.asarray(normal(8, 300)), jnp.asarray(np.arange(80).reshape(8, 10))
  keys = prng.fold_rows(jax.random.key(9), np.arange(8))
  counts = tally(tokens, np.full(8, 4), np.full(8, 10), 300)
  args, kinds = controls(asked, support=20)
  among = rows_in_turn(logits, keys, args, kinds, counts)
  for i in range(8):
    its = jax.tree.map(lambda a, i=i: a[i : i + 1], (logits, keys, counts))
    alone = rows_in_turn(*its[:2], *controls([asked[i]], support=20), its[2])
    assert alone.token_B[0] == among.token_B[i]
    np.testing.assert_allclose(alone.logp_B[0], among.logp_B[i], atol=1e-6)
    np.testing.assert_array_equal(alone.support_BK[0], among.support_BK[i])


@pytest.mark.optimized
@pytest.mark.parametrize(
  'asked, support, sorts, best',
  [
    (RequestSampling(0.7, min_p=0.1), 0, False, False),
    (RequestSampling(0.7, 20, 0.9), 20, False, True),
    (RequestSampling(0.7, 20, 0.9), 0, True, False),
    (RequestSampling(0.7, 0, 0.9), 20, True, True),
  ],
)
def test_only_what_a_batch_needs_is_compiled(asked, support, sorts, best):
  """No sort of V without top-k or top-p, one at most; none where a support bounds every row."""
  keys = prng.fold_rows(jax.random.key(9), np.arange(2))
  program = rows_in_turn.lower(jnp.zeros((2, 500)), keys, *controls([asked] * 2, support))
  text = program.compile().as_text()
  assert text.count(' sort(') == sorts and ('"TopK"' in text) == best


def test_counts_follow_live_rows_and_stop_at_their_type():
  rng, V = np.random.default_rng(8), 12
  tokens = rng.integers(0, V, (3, 30))
  counts = tally(jnp.asarray(tokens), np.array([4, 0, 9]), np.array([10, 0, 9]), V)
  live = rng.random((3, 30)) < 0.7
  for t in range(10, 30):
    counts = jax.jit(count)(counts, tokens[:, t], live[:, t])
  for row, (prompt, length) in enumerate([(4, 10), (0, 0), (9, 9)]):
    new = [int(i) for i, on in zip(tokens[row, 10:], live[row, 10:], strict=True) if on]
    expected = collections.Counter([*tokens[row, prompt:length].tolist(), *new])
    assert counts.written_BV[row].tolist() == [expected[v] for v in range(V)]
    assert set(np.flatnonzero(counts.seen_BV[row])) == set(tokens[row, :prompt].tolist())
  full = Counts(jnp.zeros((1, 2), bool), jnp.array([[MOST, MOST - 1]], jnp.int16))
  for token in (0, 1, 1):
    full = count(full, jnp.array([token]), jnp.array([True]))
  assert full.written_BV.tolist() == [[MOST, MOST]]


def test_counts_ahead_are_those_of_the_text_with_the_drafts():
  rng, V, K = np.random.default_rng(9), 5, 3
  tokens, drafts = rng.integers(0, V, (4, 6)), rng.integers(0, V, (4, K))
  drafts[2, 1:] = -1
  prompt, length = np.array([2, 0, 6, 3]), np.array([6, 4, 6, 5])
  made = count_ahead(tally(jnp.asarray(tokens), prompt, length, V), jnp.asarray(drafts))
  for b in range(4):
    for j in range(K + 1):
      own = [*tokens[b, prompt[b] : length[b]], *drafts[b, :j]]
      expected = np.bincount([t for t in own if t >= 0], minlength=V)
      at = b * (K + 1) + j
      assert made.written_BV[at].tolist() == expected.tolist()
      assert set(np.flatnonzero(made.seen_BV[at])) == set(tokens[b, : prompt[b]].tolist())
  full = Counts(jnp.zeros((1, 2), bool), jnp.array([[MOST, MOST - 1]], jnp.int16))
  more = count_ahead(full, jnp.array([[0, 1, 1]]))
  assert more.written_BV.tolist() == [[MOST, MOST - 1]] * 2 + [[MOST, MOST]] * 2


@pytest.mark.parametrize(
  'wrong', [{'min_p': 1.5}, {'repetition': 0.0}, {'presence': float('nan')}, {'top_p': 0.0}]
)
def test_parameters_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match='need'):
    RequestSampling(**wrong)
