"""Diversity in a group."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.diversity import distinct, diversity, jaccard, overlap

sets = st.sets(st.integers(0, 8))


@given(sets, sets)
def test_similarities(a, b):
  for similar in (jaccard, overlap):
    assert 0 <= similar(a, b) == similar(b, a) <= 1
    assert similar(a, a) == 1.0
    assert (similar(a, b) == 0) == (not a & b and bool(a | b))
  assert jaccard(a, b) <= overlap(a, b)


def test_by_hand():
  # unigrams {a b c}, {a b d}, {x}
  values = diversity(['a b c', 'a b d', 'x'], [True] * 3, 1, jaccard)
  assert values == pytest.approx([1 - 0.25, 1 - 0.25, 1.0])
  values = diversity(['a b c', 'a b d', 'x'], [True] * 3, 1, overlap)
  assert values == pytest.approx([1 - 1 / 3, 1 - 1 / 3, 1.0])


def test_copies_have_none_and_the_empty_group_is_empty():
  assert diversity(['the same words here'] * 4, [True] * 4) == [0.0] * 4
  assert diversity(['', '', ' '], [True] * 3) == [0.0] * 3
  assert diversity(['alone'], [True]) == [0.0]
  assert diversity([], []) == []


def test_who_does_not_earn_is_no_sibling():
  texts = ['a b c d', 'a b c d', 'e f g h', 'i j k l']
  assert diversity(texts, [True, False, True, False]) == [1.0, 0.0, 1.0, 0.0]
  assert diversity(texts, [True, False, False, False]) == [0.0] * 4


def test_noise_behind_a_copy_buys_nothing():
  thought = 'we add five and three and get eight apples in all'
  noise = ' '.join(f'q{i}' for i in range(200))
  assert diversity([thought, thought + ' ' + noise], [True, True]) == [0.0, 0.0]
  assert diversity([thought, thought + ' ' + noise], [True, True], similarity=jaccard)[0] > 0.9


def test_hidden_characters_and_case_make_no_difference():
  assert diversity(['We add five.', 'we a\u200bdd \ufefffive.'], [True, True]) == [0.0, 0.0]


@given(st.lists(st.tuples(st.text('ab ', max_size=9), st.booleans()), max_size=6), st.randoms())
def test_the_order_of_a_group_does_not_matter(group, rng):
  values = diversity(*zip(*group)) if group else []
  mixed = list(range(len(group)))
  rng.shuffle(mixed)
  again = diversity(*zip(*(group[i] for i in mixed))) if group else []
  np.testing.assert_allclose(again, [values[i] for i in mixed], atol=1e-12)
  assert all(-1e-12 <= v <= 1 for v in values)


def test_distinct_n():
  assert distinct(['a b', 'a c'], 1) == 0.75
  assert distinct(['a b', 'a b'], 2) == 0.5
  assert distinct([], 2) == distinct([''], 2) == 1.0
  texts = ['a b c', 'a b d', 'b c d']
  assert all(distinct([*pair, pair[0]], 1) < 1 for pair in itertools.combinations(texts, 2))
