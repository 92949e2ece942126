"""Lists of pages: full, windows and rings name exactly the positions that they should."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.paged.visible import visible_full, visible_ring, visible_window

SIZE, T = 4, 6


def positions(visible, where):
  """Positions a row, looked up by what lies where: {(page, place): position}."""
  rows = zip(*map(np.asarray, visible))
  return [
    sorted(where[page, place] for page, a, b in zip(*row) if page >= 0 for place in range(a, b))
    for row in rows
  ]


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  newest=st.lists(st.integers(-1, T * SIZE - 1), min_size=3, max_size=3),
  order=st.permutations(range(3 * T)),
  window=st.sampled_from([None, 1, 4, 5, 7, 50]),
  start=st.sampled_from([0, 3, 4, 9]),
)
def test_full_and_windows(newest, order, window, start):
  table = np.reshape(order, (3, T)).astype('i4')
  table[np.arange(T) > (np.array(newest) // SIZE)[:, None]] = -1
  where = {(table[b, p // SIZE], p % SIZE): p for b in range(3) for p in range(newest[b] + 1)}
  if window is None:
    visible = visible_full(table, np.int32(newest), SIZE, start)
  else:
    visible = visible_window(table, np.int32(newest), SIZE, window)
    assert visible.pages_BT.shape[1] == (window + SIZE - 2) // SIZE + 1
  first = [start if window is None else max(0, n - window + 1) for n in newest]
  assert positions(visible, where) == [list(range(a, n + 1)) for a, n in zip(first, newest)]
  # What nobody sees is no page either: it would be copied for nothing.
  assert ((np.asarray(visible.pages_BT) < 0) == (visible.from_BT >= visible.to_BT)).all()


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  newest=st.lists(st.integers(-1, 60), min_size=3, max_size=3), window=st.sampled_from([1, 5, 12])
)
def test_rings(newest, window):
  slots, ring = np.int32([2, 0, 1]), 12
  visible = visible_ring(slots, np.int32(newest), ring, SIZE, window)
  where = {}
  for slot, n in zip(slots, newest):
    for p in range(n + 1):  # later positions overwrite
      where[slot * ring // SIZE + p % ring // SIZE, p % SIZE] = p
  want = [list(range(max(0, n - window + 1), n + 1)) for n in newest]
  assert positions(visible, where) == want


def test_lists_that_cannot_hold_the_window_are_refused():
  table, newest = np.zeros((1, 9), 'i4'), np.zeros(1, 'i4')
  with pytest.raises(ValueError, match='3 pages of 4 for a window of 10; it can lie in 4'):
    visible_window(table, newest, 4, 10, most=3)
  with pytest.raises(ValueError, match='a ring of 12 places for pages of 5 and a window of 4'):
    visible_ring(newest, newest, 12, 5, 4)
  with pytest.raises(ValueError, match='a ring of 12 places for pages of 4 and a window of 13'):
    visible_ring(newest, newest, 12, 4, 13)
