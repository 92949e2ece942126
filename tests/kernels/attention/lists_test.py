"""Ranges of visited blocks against the pairs that see each other."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.attention.lists import (
  Band,
  Listed,
  Range,
  Sizes,
  Tokens,
  banded,
  most_visited,
  visited_ids,
)
from r1jax.kernels.attention.reference import sees

L = 24
packed = st.lists(st.integers(1, 14), max_size=5).filter(lambda row: sum(row) <= L)
bands = st.builds(
  lambda near, more: Band(near, None if more is None else near + more),
  st.integers(0, 9),
  st.one_of(st.none(), st.integers(1, 9)),
)


def row(lengths):
  segments = [s + 1 for s, n in enumerate(lengths) for _ in range(n)]
  return Tokens(np.arange(L, dtype='i4')[None], np.int32([segments + [0] * (L - len(segments))]))


def pairs(queries, keys, band, sizes):
  """Whether any query of a block sees any key of another."""
  mask_LM = np.asarray(sees(queries, keys, band))[0]
  return mask_LM.reshape(L // sizes.query, sizes.query, -1, sizes.key).any((1, 3))


def visits(found, blocks):
  first_I, count_I = (np.asarray(x)[0] for x in found)
  at_J = np.arange(blocks)
  return (at_J >= first_I[:, None]) & (at_J < (first_I + count_I)[:, None])


@hypothesis.given(
  lengths=packed,
  band=bands,
  sizes=st.sampled_from([Sizes(4, 8), Sizes(8, 4), Sizes(3, 2)]),
  gaps=st.booleans(),
)
@hypothesis.settings(max_examples=150)
def test_a_range_holds_every_pair_that_sees_each_other_and_no_more_than_its_bound(
  lengths, band, sizes, gaps
):
  queries = keys = row(lengths)
  if gaps:  # every third token, then padding
    keys = Tokens(*(np.pad(x[:, ::3], ((0, 0), (0, 16))) for x in queries))
  wanted_IJ = pairs(queries, keys, band, sizes)
  got = banded(queries, keys, band, sizes)
  got_IJ = visits(got, wanted_IJ.shape[1])
  back_JI = visits(banded(queries, keys, band, sizes, transposed=True), len(wanted_IJ))
  assert (got_IJ >= wanted_IJ).all() and (wanted_IJ <= back_JI.T).all()
  assert got.count_BI.max() <= most_visited(band, sizes.query, sizes.key, wanted_IJ.shape[1])
  if len(lengths) == 1 and not gaps:  # one segment: not a block too many
    np.testing.assert_array_equal(got_IJ, wanted_IJ)
    np.testing.assert_array_equal(back_JI.T, wanted_IJ)


def test_ranges_as_ids():
  ids = visited_ids(Range(np.int32([[2, 0, 1]]), np.int32([[2, 0, 1]])), 3)
  np.testing.assert_array_equal(ids, [[[2, 3, -1], [-1, -1, -1], [1, -1, -1]]])
  assert visited_ids(Listed(ids), 3) is ids


@pytest.mark.parametrize('near, far', [(-1, None), (3, 3), (5, 2)])
def test_a_band_that_is_none_is_refused(near, far):
  with pytest.raises(ValueError, match='0 <= near < far'):
    Band(near, far)
