"""Tokens and n-grams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.words import MAX_CHARS, grams, tokens, visible


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', []),
    ('Two words!', ['two', 'words', '!']),
    ('苹果是', ['苹果', '是']),
    ('a' * 33, ['a' * 16, 'a' * 16, 'a']),
    ('x²+y', ['x²', '+', 'y']),
    ('a\u200bb \u200b', ['ab']),
    ('e\u0301t', ['ét']),
  ],
)
def test_tokens(text, expected):
  assert tokens(text) == expected


def test_korean_letters_are_joined():
  assert visible('\u1112\u1161\u11ab') == '한'


def test_grams():
  assert grams('a b c', 2) == [('a', 'b'), ('b', 'c')]
  assert grams('a b', 3) == [('a', 'b')]
  assert grams(' \u200b ', 3) == []


def test_the_end_of_a_long_text_is_read():
  assert tokens('a ' + 'b' * MAX_CHARS)[0] == 'b' * 16


@given(st.text(), st.integers(1, 4))
def test_as_many_grams_as_fit(text, n):
  count = len(tokens(text))
  assert len(grams(text, n)) == (count - n + 1 if count >= n else bool(count))
