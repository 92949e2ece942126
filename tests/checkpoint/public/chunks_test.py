"""Chunks tile their leaf, in memory order, at sizes worth a read."""

import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.checkpoint.public import chunks

SHAPES = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@pytest.mark.parametrize(
  ('shape', 'itemsize', 'chunk'),
  [
    ((58, 256, 7168, 2048), 2, (1, 1, 7168, 2048)),  # DeepSeek-V3's experts, one by one
    ((26, 64, 2048, 1408), 2, (1, 1, 2048, 1408)),  # V2-Lite's
    ((48, 128, 2048, 768), 2, (1, 1, 2048, 768)),  # Qwen3-30B-A3B's
    ((3, 7168, 18432), 2, (1, 1792, 18432)),
    ((61, 128, 128, 7168), 2, (1, 32, 128, 7168)),  # heads are not cut apart
    ((80, 64, 128, 8192), 2, (1, 32, 128, 8192)),
    ((129280, 7168), 2, (4618, 7168)),
    ((58, 7168, 256), 4, (1, 7168, 256)),
    ((61, 7168), 2, (61, 7168)),
    ((30, 576, 1536), 2, (30, 576, 1536)),  # a small model's layers lie together
    ((7,), 4, (7,)),
    ((), 4, ()),
  ],
)
def test_chunks_of_public_models(shape, itemsize, chunk):
  assert chunks.grid(shape, itemsize) == chunk


@pytest.fixture
def small(monkeypatch):
  """Limits at which small arrays are cut."""
  monkeypatch.setattr(chunks, 'FLOOR', 32)
  monkeypatch.setattr(chunks, 'CAP', 128)


def cut(shape, dtype='bfloat16', name='x'):
  array = jax.ShapeDtypeStruct(shape, dtype)
  return list(chunks.cut(name, array, chunks.grid(shape, array.dtype.itemsize)))


@hypothesis.given(SHAPES)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_chunks_are_stretches_of_memory_that_tile_the_array(small, shape):
  positions = np.arange(math.prod(shape)).reshape(shape)
  found = cut(shape)
  assert [c.number for c in found] == [*range(len(found))]
  for c in found:
    assert positions[c.index].shape == c.shape and c.nbytes == 2 * math.prod(c.shape)
    assert (positions[c.index].ravel() == c.first + np.arange(math.prod(c.shape))).all()
    assert c.nbytes <= chunks.CAP
  assert np.array_equal(
    np.concatenate([positions[c.index].ravel() for c in found]), positions.ravel()
  )


def test_what_a_cut_takes_on_disk(small):
  arrays = {
    'a': jax.ShapeDtypeStruct((7, 5, 8), 'bfloat16'),
    'b': jax.ShapeDtypeStruct((), 'int32'),
  }
  assert chunks.grid((7, 5, 8), 2) == (1, 5, 8)
  assert chunks.grid((10, 10), 2) == (5, 10)  # 6 rows fit: two equal chunks, not 6 and 4
  assert chunks.grid((11, 10), 2) == (6, 10)
  arrays['c'] = jax.ShapeDtypeStruct((11, 10), 'bfloat16')
  assert chunks.stored(arrays) == 7 * 5 * 8 * 2 + 4 + 12 * 10 * 2


@hypothesis.given(st.lists(SHAPES, min_size=1, max_size=4), st.integers(1, 5))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_shares_are_neighbours_of_about_equal_bytes(small, shapes, parts):
  every = [c for i, shape in enumerate(shapes) for c in cut(shape, name=f'{i}')]
  shares = [chunks.share(every, part, parts) for part in range(parts)]
  assert [c for share in shares for c in share] == every
  total, largest = sum(c.nbytes for c in every), max(c.nbytes for c in every)
  assert max(sum(c.nbytes for c in share) for share in shares) <= total / parts + largest
  assert chunks.share([], 0, 2) == []
