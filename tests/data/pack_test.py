"""Packing loses nothing, splits nothing, overfills nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data.pack import best_fit

LENGTHS = st.lists(st.integers(1, 20), max_size=60)


def test_each_row_goes_into_the_fullest_line_that_holds_it():
  assert best_fit([3, 7, 2, 5, 3], 10) == [[1, 0], [3, 4, 2]]
  assert best_fit([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]
  assert best_fit([10], 10) == [[0]] and best_fit([], 10) == []


@given(LENGTHS, st.integers(20, 40))
def test_nothing_is_lost_nothing_is_split_no_line_is_overfull(lengths, length):
  lines = best_fit(lengths, length)
  assert sorted(i for line in lines for i in line) == list(range(len(lengths)))
  assert all(0 < sum(lengths[i] for i in line) <= length for line in lines)


@given(LENGTHS)
def test_any_two_lines_together_overflow_one(lengths):
  used = sorted(sum(lengths[i] for i in line) for line in best_fit(lengths, 20))
  assert len(used) < 2 or used[0] + used[1] > 20


def test_a_row_longer_than_a_line_is_an_error():
  with pytest.raises(ValueError, match='row 1 has 11 inputs, a line holds 10; cut it first'):
    best_fit([3, 11], 10)
