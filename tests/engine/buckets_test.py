"""Bucket sizes, the waste that their docstring states, padded rows and batches of like width."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from r1jax.engine import buckets
from r1jax.engine.buckets import bucket
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh


def test_sizes_are_powers_of_two_and_the_halves_between():
  assert sorted({bucket(n, 1) for n in range(1, 130)}) == [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192,
  ]  # fmt: skip
  assert [bucket(n) for n in (0, 1, 16, 17, 24, 25, 33)] == [16, 16, 16, 24, 24, 32, 48]
  assert len({bucket(n) for n in range(1, 131_073)}) == 27


SIZES = sorted({1, *(2**k for k in range(1, 32)), *(3 * 2**k for k in range(31))})


@hypothesis.given(st.integers(1, 10**9))
def test_the_smallest_size_that_holds_n_and_less_than_half_as_much_again(n):
  assert bucket(n, 1) == min(size for size in SIZES if size >= n)
  assert 2 * bucket(n, 1) < 3 * n


def test_the_least_width_wastes_more_on_rows_below_11_tokens():
  assert [n for n in range(1, 100) if 2 * bucket(n) >= 3 * n] == list(range(1, 11))


def test_the_mean_waste_is_a_seventh():
  n = np.arange(2**12 + 1, 2**16 + 1)
  size = np.array([bucket(int(i)) for i in n])
  assert 1 - n.sum() / size.sum() == pytest.approx(1 / 7, abs=0.01)


def test_rows_are_padded_to_the_right_and_the_batch_by_its_last_row():
  tokens_BL, lengths_B = buckets.pad([[1, 2, 3], [4], [5], [6, 7], [8]], fill=9)
  assert tokens_BL.shape == (6, 16) and tokens_BL.dtype == lengths_B.dtype == np.int32
  assert lengths_B.tolist() == [3, 1, 1, 2, 1, 1]
  assert tokens_BL[:, :4].tolist() == [
    [1, 2, 3, 9], [4, 9, 9, 9], [5, 9, 9, 9], [6, 7, 9, 9], [8, 9, 9, 9], [8, 9, 9, 9],
  ]  # fmt: skip
  assert (tokens_BL[:, 4:] == 9).all()


@pytest.mark.parametrize('rows, shards, count', [(1, 1, 1), (5, 1, 6), (1, 4, 4), (9, 4, 12)])
def test_a_batch_splits_over_the_shards(rows, shards, count):
  assert buckets.pad([[1]] * rows, 0, shards).tokens_BL.shape == (count, 16)


@pytest.mark.parametrize('shards', [1, 2, 8])
def test_the_last_batch_can_be_filled_up_to_the_rows_of_the_others(shards):
  made = buckets.batches([5] * 100, slots=700, shards=shards, more=8)
  least = buckets.fit(16 + 8, 700, shards)
  assert {len(batch) for batch in made[:-1]} == {least} and 0 < len(made[-1]) < least
  for batch in made:
    tokens_BL, lengths_B = buckets.pad([[1] * 5 for _ in batch], 0, shards, least)
    assert tokens_BL.shape == (least, 16) and lengths_B.tolist() == [5] * least


def test_batches_hold_rows_of_one_width_widest_first():
  lengths = [3, 40, 16, 17, 41, 1, 48, 2]
  assert buckets.batches(lengths, slots=100) == [[6, 4], [1], [3], [2, 0, 7, 5]]
  assert buckets.batches(lengths, slots=100, more=16) == [[6], [4], [1], [3], [2, 0], [7, 5]]
  assert buckets.batches(lengths, slots=1, shards=2) == [[6, 4], [1], [3], [2, 0], [7, 5]]
  assert buckets.batches([], 100) == []


@hypothesis.given(
  st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000), st.sampled_from([1, 2, 8])
)
def test_every_row_is_in_one_batch_whose_padded_form_fits(lengths, slots, shards):
  made = buckets.batches(lengths, slots, shards)
  assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
  for batch in made:
    rows, width = buckets.pad([[0] * lengths[i] for i in batch], 0, shards).tokens_BL.shape
    assert {bucket(lengths[i]) for i in batch} == {width}
    assert rows * width <= max(slots, shards * width)


def test_shards_of_a_mesh():
  assert buckets.shards(None) == 1
  assert buckets.shards(meshes.make(Mesh(fsdp=2, expert=2, tensor=2))) == 4
