"""Orders are permutations, each key has its own, and all of them are equally likely."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data import order


@given(st.integers(1, 2000), st.integers(0, 10), st.integers(0, 3))
def test_index_is_a_permutation(n, seed, epoch):
  assert sorted(order.index(i, n, seed, epoch) for i in range(n)) == list(range(n))


@given(st.integers(1, 2**50), st.data())
def test_places_of_long_permutations_differ_and_lie_inside(n, data):
  places = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=50))
  found = {order.index(i, n, 'long', 7) for i in places}
  assert len(found) == len(places) and all(0 <= i < n for i in found)


@given(st.integers(0, 1000), st.integers(0, 10))
def test_shuffled_is_a_permutation(n, seed):
  assert sorted(order.shuffled(n, seed).tolist()) == list(range(n))


def index_all(n, *key):
  return tuple(order.index(i, n, *key) for i in range(n))


@pytest.mark.parametrize('whole', [index_all, lambda *a: tuple(order.shuffled(*a).tolist())])
@pytest.mark.parametrize('n', [2, 3, 4])
def test_all_orders_of_few_are_equally_likely(whole, n):
  each, kinds = 200, math.factorial(n)
  seen = Counter(whole(n, seed) for seed in range(each * kinds))
  chi2 = sum((count - each) ** 2 / each for count in seen.values())
  assert len(seen) == kinds
  assert chi2 < kinds + 5 * math.sqrt(2 * kinds)  # kinds − 1 degrees of freedom, five deviations


@pytest.mark.parametrize('whole', [index_all, order.shuffled])
def test_every_number_comes_at_every_place_and_neighbours_part(whole):
  n, seeds = 50, 2000
  made = np.array([whole(n, 'x', seed) for seed in range(seeds)])
  counts = np.array([np.bincount(column, minlength=n) for column in made.T])
  chi2 = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
  assert abs(chi2 - (n - 1) ** 2) < 5 * math.sqrt(2) * (n - 1)
  neighbours = (made[:, 1:] == made[:, :-1] + 1).mean()
  assert abs(neighbours - 1 / n) < 5 * math.sqrt(1 / n / seeds / (n - 1))


def test_orders_never_change():
  """A resumed run relies on these very numbers, whatever library versions it finds."""
  assert index_all(10, 'documents', 0, 1, 2) == (7, 6, 9, 2, 4, 1, 5, 3, 8, 0)
  assert order.shuffled(10, 'lines', 0, 1, 2).tolist() == [2, 1, 4, 9, 3, 5, 8, 7, 0, 6]


def test_a_place_outside_is_an_error():
  for i, n in [(3, 3), (-1, 3), (0, 0)]:
    with pytest.raises(ValueError, match=f'place {i} of a permutation of {n}; expected 0 <= '):
      order.index(i, n)
