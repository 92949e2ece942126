"""Drafts out of the text against the host's index, and by each row's own parameters."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine import ngram
from r1jax.engine.drafts import Modules, NGram, choose_rows, lookup
from r1jax.engine.sampling import RequestSampling, controls, sample_rows, tally

ROOM = 24
TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=ROOM), min_size=3, max_size=3)
LOOKUP = jax.jit(lookup, static_argnums=(2, 3))


def padded(texts, junk):
  """(tokens, lengths); behind each text stands what was never written."""
  tokens = np.full((len(texts), ROOM), junk, np.int32)
  for to, text in zip(tokens, texts):
    to[: len(text)] = text
  return tokens, np.array([len(t) for t in texts], np.int32)


@hypothesis.given(TEXTS, st.sampled_from([(1, 1), (3, 2), (5, 4)]), st.integers(0, 3))
def test_the_device_proposes_what_the_host_does(texts, sizes, junk):
  """Whatever stands behind a text, be it what the text itself has."""
  made = LOOKUP(*padded(texts, junk), *sizes)
  assert made.tolist() == [ngram.propose(t, *sizes) or [-1] * sizes[0] for t in texts]


def test_a_text_that_fills_its_room():
  tokens, lengths = padded([[1, 2] * (ROOM // 2)], 0)
  assert LOOKUP(tokens, lengths, 3, 2).tolist() == [[1, 2, 1]]


def test_drafts_are_what_the_row_itself_would_draw():
  """Greedy, tempered and penalized rows, each by its key and position."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(3, 50)) * 2, jnp.float32)
  asked = [RequestSampling(0.0), RequestSampling(0.8, 5), RequestSampling(0.0, presence=9.0)]
  settings, kinds = controls(asked, 8)
  best = np.asarray(logits.argmax(-1))
  counts = tally(jnp.asarray(best[:, None]), np.zeros(3, int), np.ones(3, int), 50)
  keys, positions = prng.fold_rows(jax.random.key(2), np.arange(3)), np.array([4, 9, 2])
  choose = jax.jit(choose_rows(keys, settings, kinds, counts))
  made, densities = choose(logits, positions)
  assert densities is None
  own = functools.partial(sample_rows, logits, controls=settings, kinds=kinds, counts=counts)
  at = jax.vmap(prng.fold)(keys, positions)
  np.testing.assert_array_equal(made, own(at).token_B)
  assert made[0] == best[0] and made[2] != best[2]
  many = [int(choose(logits, positions + i)[0][1]) for i in range(20)]
  assert 1 < len(set(many)) <= 5


@pytest.mark.parametrize(
  'wrong',
  [lambda: Modules(0), lambda: NGram(0), lambda: NGram(2, 0)],
  ids=['modules', 'ngram', 'longest'],
)
def test_no_drafts_are_none_and_not_zero(wrong):
  with pytest.raises(ValueError, match='expected 1 or more'):
    wrong()
