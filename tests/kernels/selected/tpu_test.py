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
from r1jax.kernels.selected import reference, selected_attention, tpu

pytestmark = pytest.mark.usefixtures('quick_compilation')

B, L, M, N, K, SCALE = 2, 10, 64, 4, 2, 0.2
packed = st.lists(
  st.lists(st.integers(1, 24), min_size=1, max_size=5).filter(lambda row: sum(row) <= M),
  min_size=B, max_size=B,
)  # fmt: skip


def draw(seed, H, V, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, M, K, H), (B, M, K, V))
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def keys_of(lengths):
  """Keys of rows packed with segments of these lengths, the rest padding."""
  segments = [[s + 1 for s, n in enumerate(row) for _ in range(n)] for row in lengths]
  segments = [row + [0] * (M - len(row)) for row in segments]
  segments_BM = np.int32(segments)
  return Tokens(np.where(segments_BM > 0, np.arange(M, dtype=np.int32), 0), segments_BM)


def some(keys, seed):
  """Queries at some of the keys' places."""
  rng = np.random.default_rng(seed)
  at = np.sort(rng.choice(M, L, replace=False))
  return Tokens(*(x[:, at] for x in keys))


def lists(seed, size, heads, T):
  rng = np.random.default_rng(seed)
  every = np.tile(np.arange(M // size, dtype=np.int32), (B, L, heads, 1))
  ids = rng.permuted(every, axis=-1)[..., :T]
  ids[rng.random(ids.shape) < 0.2] = -1
  ids[1, 5] = -1
  return ids


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


# Of a page, lists, pages listed, widths of keys and values, whether values lie in the keys, dtype.
CASES = {
  'tokens, half words': (1, 1, 20, 200, 136, True, 'bfloat16'),
  'tokens, whole words': (1, 1, 20, 200, 136, True, 'float32'),
  'tokens of each head': (1, K, 7, 64, 64, False, 'float32'),
  'pages as tokens': (4, 1, 5, 64, 64, False, 'bfloat16'),
  'pages': (8, K, 3, 192, 128, False, 'float32'),
  'pages that hold values': (16, 1, 3, 192, 128, True, 'bfloat16'),
}


@pytest.mark.parametrize('case', CASES)
@hypothesis.given(seed=st.integers(0, 99), lengths=packed)
@hypothesis.settings(max_examples=3)
def test_pages_of_packed_rows(case, seed, lengths):
  (size, heads, T, H, V, shared, dtype), keys = CASES[case], keys_of(lengths)
  arrays, ids = draw(seed, H, V, dtype), lists(seed, size, heads, T)
  tolerance = 1e-5 if dtype == 'float32' else 3e-2
  check(arrays, shared, ids, size, some(keys, seed), keys, tolerance)


@pytest.mark.parametrize('size, T', [(1, 20), (8, 6)])
def test_a_list_takes_several_steps(monkeypatch, size, T):
  monkeypatch.setattr(tpu, 'ROWS', 16)
  keys = keys_of([[64], [20, 30]])
  arrays, ids = draw(0, 64, 48), lists(0, size, K, T)
  check(arrays, False, ids, size, some(keys, 0), keys, 1e-5)


def test_copies_and_reads_do_not_race(monkeypatch, capsys):
  monkeypatch.setattr(tpu, 'ROWS', 16)
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


@hypothesis.given(seed=st.integers(0, 99), lengths=packed, every=st.integers(1, 4))
@hypothesis.settings(max_examples=20)
def test_what_is_seen_is_a_range_of_places(seed, lengths, every):
  whole = keys_of(lengths)
  whole.segments_BM[:, :3] = 0  # padding stands before, between and after segments
  whole.segments_BM[:, 1:-1][whole.segments_BM[:, 1:-1] != whole.segments_BM[:, 2:]] = 0
  keys = Tokens(*(x[:, ::every].copy() for x in whole))
  keys.segments_BM[:, -8:] = 0  # slots that are not filled, though queries see beyond them
  queries = some(whole, seed)
  low, high = jax.jit(tpu.seen_ranges)(queries, keys)
  place = np.arange(M)[::every] // every
  np.testing.assert_array_equal((place >= low) & (place < high), sees(queries, keys, Band()))


def test_a_dtype_that_the_kernel_does_not_take_is_refused():
  q, k, v = draw(0, 64, 64)
  tokens = keys_of([[64], [64]])
  queries, ids = some(tokens, 0), lists(0, 1, 1, 3)
  with pytest.raises(NotImplementedError, match=r'float16.*use xla'):
    half = [x.astype(jnp.float16) for x in (q, k, v)]
    selected_attention(*half, ids, 1, queries, tokens, SCALE, implementation='tpu')
