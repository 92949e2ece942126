"""Slices of a leaf are slices of einops' own rearrangement, and a write undoes a read."""

import numpy as np
import pytest
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from r1jax.checkpoint.public.layout import Layout

SIZES = (('D', 6), ('N', 3), ('H', 4), ('C', 5), ('R', 2), ('V', 7))
PATTERNS = (
  ('V D -> V D', None),
  ('V D -> D V', None),
  ('(N H) D -> D N H', None),
  ('D (N H) -> N H D', None),
  ('(N C) R -> R N C', ('C', 0, 3)),
  ('(N C) R -> R N C', ('C', 3, 5)),
  ('(N H) -> N H', None),
  ('D (N H) -> (H N) D', None),
  ('D -> D', None),
)


def public(layout):
  return np.arange(np.prod(layout.theirs)).reshape(layout.theirs)


def whole(pattern, part, theirs):
  """By einops, with the part cut out of the letters apart."""
  sizes = {a: n for a, n in SIZES if a in pattern}
  if part is None:
    return rearrange(theirs, pattern, **{a: n for a, n in sizes.items() if '(' in pattern})
  left, right = pattern.split(' -> ')
  apart = rearrange(theirs, f'{left} -> {left.replace("(", "").replace(")", "")}', **sizes)
  axis = left.replace('(', '').replace(')', '').split().index(part[0])
  cut = np.take(apart, range(*part[1:]), axis)
  return rearrange(cut, f'{left.replace("(", "").replace(")", "")} -> {right}')


@pytest.mark.parametrize('pattern, part', PATTERNS)
@given(data=st.data())
def test_a_slice_is_that_of_the_whole(pattern, part, data):
  layout = Layout(pattern, SIZES, part)
  theirs = public(layout)
  want = whole(pattern, part, theirs)
  assert layout.ours == want.shape
  bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in want.shape]
  index = tuple(slice(*b) for b in bounds)[: data.draw(st.integers(0, want.ndim))]
  np.testing.assert_array_equal(layout.read(theirs.__getitem__, index), want[index])


@pytest.mark.parametrize('pattern, part', PATTERNS)
def test_a_write_puts_back_what_a_read_gave_and_nothing_else(pattern, part):
  layout = Layout(pattern, SIZES, part)
  theirs = public(layout)
  made = np.full_like(theirs, -1)
  layout.write(layout.read(theirs.__getitem__), made)
  kept = made != -1
  np.testing.assert_array_equal(made[kept], theirs[kept])
  assert kept.sum() == np.prod(layout.ours)


def test_only_the_rows_that_are_needed_are_read():
  asked = []
  layout = Layout('(N C) R -> R N C', SIZES, ('C', 3, 5))
  theirs = public(layout)

  def get(index):
    asked.append(index)
    return theirs[index]

  layout.read(get, (slice(1, 2), slice(2, 3)))
  assert asked == [(slice(10, 15), slice(1, 2))]
