"""Conciseness from lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.rewards.length import budget, relative


@pytest.mark.parametrize(
  ('length', 'value'), [(0, 1.0), (100, 1.0), (150, 0.5), (200, 0.0), (10**9, 0.0)]
)
def test_budget(length, value):
  assert budget(length, 100) == value


@pytest.mark.parametrize('limit', [0, -1, float('nan')])
def test_a_budget_is_positive(limit):
  with pytest.raises(UserError, match='expected more than 0'):
    budget(1, limit)


def test_relative_to_the_shortest_correct():
  assert relative([10, 20, 40, 1], [True, True, True, False]) == [1.0, 0.5, 0.25, 0.0]
  assert relative([5, 7], [False, False]) == [0.0, 0.0]
  assert relative([0, 2], [True, True]) == [1.0, 0.5]
  assert relative([], []) == []
  with pytest.raises(ValueError, match='zip'):
    relative([1], [])


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans())))
def test_wrong_earns_nothing_and_shorter_earns_more(group):
  values = relative([n for n, _ in group], [c for _, c in group])
  assert all(0 < v <= 1 if c else v == 0 for v, (_, c) in zip(values, group))
  right = sorted((n, -v) for v, (n, c) in zip(values, group) if c)
  assert [v for _, v in right] == sorted(v for _, v in right)
