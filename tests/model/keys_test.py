"""Which tokens become key tokens, against a loop over the rule."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention.lists import Tokens
from r1jax.model import keys
from r1jax.model.config import GQA, Dense, Full, Hybrid, KeyScores, KeyTokens, Layer, ModelConfig

L = 32
CHOSEN = jax.jit(keys.chosen, static_argnames='pattern')
COUNTED = jax.jit(keys.counted, static_argnames='pattern')
PATTERNS = [
  Hybrid(4, KeyTokens(0.25)),
  Hybrid(3, KeyTokens(0.5, slots=2)),
  Hybrid(1, KeyTokens(1.0)),
  Hybrid(8, KeyTokens(0.05)),
]
packed = st.lists(st.integers(1, 20), min_size=1, max_size=5).filter(lambda n: sum(n) <= L)


def row(lengths):
  """Positions and segments of one row."""
  positions = [p for n in lengths for p in range(n)]
  segments = [s + 1 for s, n in enumerate(lengths) for _ in range(n)]
  rest = L - len(positions)
  return np.int32([positions + [0] * rest]), np.int32([segments + [0] * rest])


def by_hand(x_L, lengths, pattern):
  """A token after the other, each segment by itself."""
  taken_L, at = np.zeros(L, bool), 0
  for n in lengths:
    count = 0
    for t in range(n):
      room = int((t + pattern.window) * pattern.keys.share + 1e-6)
      room = room if pattern.keys.slots is None else min(room, pattern.keys.slots)
      if x_L[at + t] and count < room:
        taken_L[at + t], count = True, count + 1
    at += n
  return taken_L


@pytest.mark.parametrize('pattern', PATTERNS[:3])
@hypothesis.given(lengths=packed, seed=st.integers(0, 999), rate=st.sampled_from([0.1, 0.5, 1.0]))
@hypothesis.settings(max_examples=30)
def test_the_closed_form_is_the_rule(pattern, lengths, seed, rate):
  x_BL = np.random.default_rng(seed).random((1, L)) < rate
  got_BL = CHOSEN(x_BL, *row(lengths), pattern=pattern)
  np.testing.assert_array_equal(got_BL[0], by_hand(x_BL[0], lengths, pattern))


@pytest.mark.parametrize('pattern', PATTERNS[:2])
@hypothesis.given(cut=st.integers(0, L), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=10)
def test_counting_goes_on_from_what_was_counted(pattern, cut, seed):
  """The last tokens of a chunk and the first are padding: they change nothing."""
  x_BL = np.random.default_rng(seed).random((1, L)) < 0.5
  want_L = np.cumsum(by_hand(x_BL[0], [L], pattern))
  before = want_L[cut - 1] if cut else 0
  at_BL = cut + np.arange(-2, L - 2, dtype=np.int32)[None]
  there_BL = (at_BL >= cut) & (at_BL < L)
  candidates_BL = np.take_along_axis(x_BL, np.clip(at_BL, 0, L - 1), 1)
  got_BL = COUNTED(candidates_BL, at_BL, there_BL, np.int32([before]), pattern=pattern)
  n = max(min(L - 2, L - cut), 0)
  rest = L - 2 - n
  last = want_L[cut + n - 1] if n else before
  want = [before] * 2 + want_L[cut : cut + n].tolist() + [last] * rest
  assert got_BL[0].tolist() == want


def test_most_key_tokens_that_a_sequence_can_show():
  assert [keys.most(p, 32) for p in PATTERNS] == [7, 2, 31, 1]
  with pytest.raises(ValueError, match='key tokens of sequences of 0 tokens'):
    keys.most(PATTERNS[0], 0)


@pytest.mark.parametrize('pattern', PATTERNS)
@hypothesis.given(lengths=packed, seed=st.integers(0, 999))
@hypothesis.settings(max_examples=30)
def test_the_slots_hold_all_that_any_query_sees_from_beyond_its_window(pattern, lengths, seed):
  x_BL = np.random.default_rng(seed).random((1, L)) < 0.7
  positions_BL, segments_BL = row(lengths)
  taken_BL = np.asarray(CHOSEN(x_BL, positions_BL, segments_BL, pattern=pattern))
  index_BL = np.arange(L, dtype=np.int32)[None]
  at_BG, there = keys.gathered(taken_BL, Tokens(index_BL, segments_BL), pattern)
  ahead = [
    t for t in range(L - pattern.window) if segments_BL[0, t + pattern.window] == segments_BL[0, t]
  ]
  wanted = [t for t in ahead if taken_BL[0, t]]
  assert at_BG[0, : len(wanted)].tolist() == wanted
  assert (at_BG[0, len(wanted) :] == L).all()
  assert there.segments_BM[0, : len(wanted)].tolist() == segments_BL[0, wanted].tolist()
  assert (there.segments_BM[0, len(wanted) :] == 0).all()
  assert (np.diff(there.index_BM[0]) >= 0).all()


def test_only_models_with_key_tokens_ask_for_a_list():
  def model(pattern):
    return ModelConfig(10, 4, (Layer(GQA(2, 1, 4, pattern=pattern), Dense(4)),), key_ids=(3, 7))

  tokens_BL = jnp.array([[3, 4, 7, 9]])
  assert keys.listed(model(Full()), tokens_BL) is None
  assert keys.listed(model(Hybrid(4, KeyScores())), tokens_BL) is None
  got_BL = keys.listed(model(Hybrid(4)), tokens_BL)
  np.testing.assert_array_equal(got_BL, [[True, False, True, False]])


@pytest.mark.parametrize('share, slots', [(0.0, None), (1.5, None), (0.1, 0)])
def test_shares_and_slots_out_of_range_are_refused(share, slots):
  for kind in (KeyTokens, KeyScores):
    with pytest.raises(ValueError, match='expected'):
      kind(share=share, slots=slots)
