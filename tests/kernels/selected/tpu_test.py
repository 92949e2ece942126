"""The TPU kernel in interpret mode against the dense specification, and which places are seen."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import sees
from r1jax.kernels.selected import reference, selected_attention, tpu, tpu_pages
from tests.kernels.selected.packed import CASES, LENGTHS, SCALE, K, M, draw, keys_of, lists, some


@functools.partial(jax.jit, static_argnames=('size', 'width'))
def interpreted(q, k, v, ids, queries, keys, size, width):
  return tpu.forward(q, k, v, ids, queries, keys, size, SCALE, width, interpret=True)


def check(arrays, shared, ids, size, queries, keys, tolerance):
  q, k, v = arrays
  width = v.shape[-1]
  got = interpreted(q, k, None if shared else v, ids, queries, keys, size, width)
  wide = [np.float64(x) for x in (q, k, k[..., :width] if shared else v)]
  with jax.enable_x64(True):
    expected = reference.selected_attention(*wide, ids, size, queries, keys, SCALE)
  for name, a, b in zip(('o', 'lse'), got, expected):
    np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('case', CASES)
@hypothesis.given(seed=st.integers(0, 99), lengths=LENGTHS)
@hypothesis.settings(max_examples=3)
def test_pages_of_packed_rows(case, seed, lengths):
  (size, heads, T, H, V, shared, dtype), keys = CASES[case], keys_of(lengths)
  arrays, ids = draw(seed, H, V, dtype), lists(seed, size, heads, T)
  tolerance = 1e-5 if dtype == 'float32' else 3e-2
  check(arrays, shared, ids, size, some(keys, seed), keys, tolerance)


@pytest.mark.parametrize('size, T', [(1, 20), (8, 6)])
def test_a_list_takes_several_steps(monkeypatch, size, T):
  monkeypatch.setattr(tpu_pages, 'ROWS', 16)
  keys = keys_of([[64], [20, 30]])
  arrays, ids = draw(0, 64, 48), lists(0, size, K, T)
  check(arrays, False, ids, size, some(keys, 0), keys, 1e-5)


def test_copies_and_reads_do_not_race(monkeypatch, capsys):
  monkeypatch.setattr(tpu_pages, 'ROWS', 16)
  keys = Tokens(*(x[:1] for x in keys_of([[20, 30], [64]])))
  q, k, v = draw(0, 64, 64)
  q, k, v = q[:1, :4, :2], k[:1, :, :1], v[:1, :, :1]
  queries = Tokens(*(x[:1, :4] for x in some(keys, 0)))
  ids = lists(0, 8, 1, 3)[:1, :4]
  params = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2
  )
  got = tpu.forward(q, k, v, ids, queries, keys, 8, SCALE, 64, interpret=params)
  expected = reference.selected_attention(q, k, v, ids, 8, queries, keys, SCALE)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert 'RACE' not in capsys.readouterr().out


@hypothesis.given(seed=st.integers(0, 99), lengths=LENGTHS, every=st.integers(1, 4))
@hypothesis.settings(max_examples=20)
def test_what_is_seen_is_a_range_of_places(seed, lengths, every):
  whole = keys_of(lengths)
  whole.segments_BM[:, :3] = 0  # padding stands before, between and after segments
  whole.segments_BM[:, 1:-1][whole.segments_BM[:, 1:-1] != whole.segments_BM[:, 2:]] = 0
  keys = Tokens(*(x[:, ::every].copy() for x in whole))
  keys.segments_BM[:, -8:] = 0  # slots that are not filled, though queries see beyond them
  queries = some(whole, seed)
  low, high = jax.jit(tpu_pages.seen_ranges)(queries, keys)
  place = np.arange(M)[::every] // every
  np.testing.assert_array_equal((place >= low) & (place < high), sees(queries, keys, Band()))


def test_a_dtype_that_the_kernel_does_not_take_is_refused():
  q, k, v = draw(0, 64, 64)
  tokens = keys_of([[64], [64]])
  queries, ids = some(tokens, 0), lists(0, 1, 1, 3)
  with pytest.raises(NotImplementedError, match=r'float16.*use xla'):
    half = [x.astype(jnp.float16) for x in (q, k, v)]
    selected_attention(*half, ids, 1, queries, tokens, SCALE, implementation='tpu')
