"""Streams repeat themselves, lose nothing, and give each epoch its own order."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.data import stream
from r1jax.data.batch import Row
from r1jax.data.stream import Shape

ROWS = [Row([i + 1] * n, [0] + [1] * (n - 1)) for i, n in enumerate([2, 5, 3, 4, 2, 6, 3, 2, 4, 5])]
SHAPE = Shape(lines=3, length=8, depths=1)


def held(batch):
  """The numbers of the rows in a batch, in order."""
  starts = (batch.inputs.segments_BL > 0) & (batch.inputs.positions_BL == 0)
  return batch.inputs.tokens_BL[starts].tolist()


def test_order_is_a_permutation_an_epoch_each_its_own():
  epochs = [list(itertools.islice(stream.order(ROWS, 3), 10 * i, 10 * i + 10)) for i in range(3)]
  numbers = [[row.tokens[0] for row in epoch] for epoch in epochs]
  assert all(sorted(epoch) == list(range(1, 11)) for epoch in numbers)
  assert len({tuple(epoch) for epoch in numbers}) == 3
  other = [row.tokens[0] for row in itertools.islice(stream.order(ROWS, 4), 10)]
  assert other != numbers[0]


def test_packing_keeps_the_order_and_loses_nothing():
  batches = list(itertools.islice(stream.packed(ROWS, SHAPE, 0), 12))
  packed = [number for batch in batches for number in held(batch)]
  expected = [r.tokens[0] for r in itertools.islice(stream.order(ROWS, 0), len(packed))]
  assert packed == expected
  assert set(Counter(packed[:30]).values()) == {3}  # three epochs
  inputs = sum(len(ROWS[n - 1].tokens) - 1 for n in packed)
  assert sum((b.inputs.segments_BL > 0).sum() for b in batches) == inputs
  assert {b.inputs.tokens_BL.shape for b in batches} == {(3, 8)}


def test_a_stream_repeats_itself():
  one, two = (list(itertools.islice(stream.packed(ROWS, SHAPE, 5), 4)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_errors_come_at_once():
  with pytest.raises(UserError, match='no rows to train on'):
    stream.packed([], SHAPE, 0)
  with pytest.raises(UserError, match='longest row has 5 inputs, a line holds 4: raise length'):
    stream.packed(ROWS, Shape(3, 4, 0), 0)
