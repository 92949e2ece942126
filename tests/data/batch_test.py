"""Every shift of the data pipeline, in closed form."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.algos import sft
from r1jax.data.batch import Row, batch, sequences

A = Row([1, 2, 3, 4, 5], [0, 0, 1, 1, 1])
B = Row([6, 7, 8], [0, 0.5, 1])
_ = 0


def test_two_segments_a_line_and_two_depths():
  made = batch([[A, B], [B]], length=7, depths=2)
  rows = lambda x: np.asarray(x).tolist()
  assert rows(made.inputs.tokens_BL) == [[1, 2, 3, 4, 6, 7, _], [6, 7, _, _, _, _, _]]
  assert rows(made.inputs.positions_BL) == [[0, 1, 2, 3, 0, 1, _], [0, 1, _, _, _, _, _]]
  assert rows(made.inputs.segments_BL) == [[1, 1, 1, 1, 2, 2, _], [1, 1, _, _, _, _, _]]
  assert rows(made.targets_BL) == [[2, 3, 4, 5, 7, 8, _], [7, 8, _, _, _, _, _]]
  assert rows(made.weights_BL) == [[0, 1, 1, 1, 0.5, 1, _], [0.5, 1, _, _, _, _, _]]
  one, two = made.inputs.ahead
  assert rows(one) == [[2, 3, 4, 5, 7, 8, _], [7, 8, _, _, _, _, _]]
  assert rows(two) == [[3, 4, 5, _, 8, _, _], [8, _, _, _, _, _, _]]
  one, two = made.ahead_targets
  assert rows(one) == [[3, 4, 5, _, 8, _, _], [8, _, _, _, _, _, _]]
  assert rows(two) == [[4, 5, _, _, _, _, _], [_] * 7]
  one, two = made.ahead_weights
  assert rows(one) == [[1, 1, 1, _, 1, _, _], [1, _, _, _, _, _, _]]
  assert rows(two) == [[1, 1, _, _, _, _, _], [_] * 7]


def test_without_depths_there_is_nothing_ahead():
  made = batch([[A]], length=4, depths=0)
  assert made.inputs.ahead == made.ahead_targets == made.ahead_weights == ()
  assert {x.shape for x in jax.tree.leaves(made)} == {(1, 4)}


def test_a_line_too_full_is_named():
  with pytest.raises(ValueError, match='line 1 holds 6 inputs, the batch 5; pack fewer rows'):
    batch([[A], [A, B]], length=5, depths=1)


def test_sequences_counts_segments():
  made = batch([[A, B], [B], []], length=7, depths=0)
  assert sequences(made.inputs.segments_BL, made.inputs.positions_BL) == 3


ROWS = st.lists(
  st.integers(1, 6).flatmap(
    lambda n: st.tuples(
      st.lists(st.integers(1, 9), min_size=n, max_size=n),
      st.lists(st.integers(0, 1), min_size=n, max_size=n),
    )
  ),
  max_size=4,
)


@given(ROWS, st.integers(1, 3))
def test_contract_15_mtp_weights_are_those_of_the_main_loss(rows, depths):
  """Depth d at position i counts exactly where the main loss counts the same token."""
  made = batch([[Row(*r) for r in rows]], length=24, depths=depths)
  segments, weights = made.inputs.segments_BL, made.weights_BL
  for d in range(1, depths + 1):
    targets, expected = sft.mtp_targets(made.targets_BL, weights, d, segments)
    np.testing.assert_array_equal(made.ahead_weights[d - 1], expected)
    seen = np.asarray(expected) > 0
    np.testing.assert_array_equal(made.ahead_targets[d - 1][seen], np.asarray(targets)[seen])
