"""Proposals from the text against a search through all of it."""

import hypothesis
import hypothesis.strategies as st
import pytest

from r1jax.engine.ngram import Index, propose

TEXTS = st.lists(st.integers(0, 3), max_size=30)


def searched(tokens, k, longest):
  """By definition: every n from the longest, every earlier place from the latest."""
  for n in range(min(longest, len(tokens)), 0, -1):
    for at in range(len(tokens) - 1, n - 1, -1):
      if tokens[at - n : at] == tokens[-n:]:
        text = list(tokens)
        for j in range(k):
          text.append(text[at + j])
        return text[len(tokens) :]
  return []


@hypothesis.given(TEXTS, st.integers(0, 6), st.integers(1, 5))
def test_a_proposal_follows_the_latest_occurrence_of_the_longest_end(tokens, k, longest):
  assert propose(tokens, k, longest) == searched(tokens, k, longest)


@hypothesis.given(st.lists(TEXTS, max_size=6), st.integers(1, 4))
def test_an_index_that_grows_proposes_what_a_new_one_would(parts, longest):
  index, text = Index(longest), []
  for part in parts:
    text += part
    index.extend(part)
    assert index.propose(3) == propose(text, 3, longest)


def test_what_is_proposed():
  assert propose([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
  assert propose([2, 8, 1, 2, 7, 5, 2], 1) == [7]  # the later of two
  assert propose([1, 2, 8, 5, 2, 7, 1, 2], 1) == [8]  # the longer one before the later one
  assert propose([1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
  assert propose([1, 2, 3], 4) == propose([], 4) == []


def test_the_cost_of_a_token_does_not_grow_with_the_text():
  index = Index(longest=3)
  index.extend([0, 1] * 5000)
  assert len(index._next) == 6  # of one, two and three tokens, in two phases


def test_no_n_gram_at_all():
  with pytest.raises(ValueError, match='longest=0'):
    Index(0)
