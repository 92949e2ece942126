"""Block-sparse attention against loops in float64 numpy: outputs, lse and both gradients."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels import platform
from r1jax.kernels.attention import blocks, reference
from r1jax.kernels.attention.blocks import Blocks, banded_attention, merge
from r1jax.kernels.attention.lists import Band, Listed, Pass, Plan, Sizes, Tokens
from r1jax.sharding import mesh as meshes

SCALE = 0.3


def draw(seed, B=2, L=24, M=24, N=4, K=2, H=6, V=3):
  """Queries, keys, values and cotangents of both outputs."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, M, K, H), (B, M, K, V), (B, L, N, V), (B, L, N))
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def rows(lengths, L):
  """Tokens of rows packed with segments of these lengths, the rest padding."""
  segments = [[s + 1 for s, n in enumerate(row) for _ in range(n)] for row in lengths]
  segments = [row + [0] * (L - len(row)) for row in segments]
  return Tokens(np.tile(np.arange(L, dtype=np.int32), (len(lengths), 1)), np.int32(segments))


def mask_of(queries, keys, band):
  """Pair by pair."""
  (qi, qs), (ki, ks) = queries, keys
  mask = np.zeros((*qi.shape, ki.shape[1]), bool)
  for b, l, m in np.ndindex(mask.shape):
    distance = qi[b, l] - ki[b, m]
    far = band.far is None or distance < band.far
    mask[b, l, m] = qs[b, l] == ks[b, m] > 0 and distance >= band.near and far
  return mask


def oracle(q, k, v, do, dlse, mask, cap=None):
  """(o, lse, dq, dk, dv) in float64, one query and head at a time."""
  q, k, v, do, dlse = (np.float64(x) for x in (q, k, v, do, dlse))
  o, lse = np.zeros(do.shape), np.full(dlse.shape, -np.inf)
  dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
  for b, l, n in np.ndindex(q.shape[:3]):
    seen, kv = mask[b, l], n // (q.shape[2] // k.shape[2])
    if not seen.any():
      continue
    s = SCALE * k[b, seen, kv] @ q[b, l, n]
    t = s / cap if cap else s
    s = cap * np.tanh(t) if cap else s
    lse[b, l, n] = np.log(np.exp(s).sum())
    p = np.exp(s - lse[b, l, n])
    o[b, l, n] = p @ v[b, seen, kv]
    ds = p * (v[b, seen, kv] @ do[b, l, n] - do[b, l, n] @ o[b, l, n] + dlse[b, l, n])
    ds = SCALE * ds * (1 - np.tanh(t) ** 2 if cap else 1)
    dq[b, l, n] = ds @ k[b, seen, kv]
    dk[b, seen, kv] += np.outer(ds, q[b, l, n])
    dv[b, seen, kv] += np.outer(p, do[b, l, n])
  return o, lse, dq, dk, dv


@functools.partial(jax.jit, static_argnames=('band', 'cap', 'sizes', 'implementation'))
def outputs_and_gradients(q, k, v, do, dlse, queries, keys, band, cap, sizes, implementation=None):
  run = lambda q, k, v: banded_attention(
    q, k, v, queries, keys, band, SCALE, cap, Blocks(sizes, sizes, sizes), implementation,
    interpret=implementation == 'tpu',
  )  # fmt: skip
  dead = 0 if implementation == 'reference' else jnp.inf  # what nobody sees must not matter
  (o, lse), back = jax.vjp(run, q, k, v)
  return o, lse, *back((do, jnp.where(lse == -jnp.inf, dead, dlse)))


def check(got, expected, atol=1e-5):
  for name, a, b in zip(('o', 'lse', 'dq', 'dk', 'dv'), got, expected):
    size = np.abs(b[np.isfinite(b)]).max(initial=1)
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * size, err_msg=name)


BANDS = (Band(), Band(0, 1), Band(0, 5), Band(3, 9), Band(4))
packed = st.lists(
  st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=2, max_size=2
).filter(lambda rows: all(sum(row) <= 24 for row in rows))


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@hypothesis.given(
  seed=st.integers(0, 99),
  lengths=packed,
  band=st.sampled_from(BANDS),
  sizes=st.sampled_from([Sizes(4, 8), Sizes(8, 4), Sizes(32, 32)]),
  cap=st.sampled_from([None, 0.7]),
)
@hypothesis.settings(max_examples=25)
def test_a_band_of_packed_rows(implementation, seed, lengths, band, sizes, cap):
  arrays, tokens = draw(seed), rows(lengths, 24)
  got = outputs_and_gradients(*arrays, tokens, tokens, band, cap, sizes, implementation)
  check(got, oracle(*arrays, mask_of(tokens, tokens, band), cap))


@hypothesis.given(seed=st.integers(0, 99), lengths=packed, band=st.sampled_from(BANDS))
@hypothesis.settings(max_examples=20)
def test_keys_gathered_from_the_sequence(seed, lengths, band):
  arrays, tokens = draw(seed, M=10), rows(lengths, 24)
  rng = np.random.default_rng(seed)
  at = np.stack([np.sort(rng.choice(24, 10, replace=False)) for _ in range(2)])
  keys = Tokens(*(np.take_along_axis(x, at, 1) for x in tokens))
  keys.segments_BM[:, 8:] = 0  # slots that are not filled
  got = outputs_and_gradients(*arrays, tokens, keys, band, None, Sizes(8, 4))
  check(got, oracle(*arrays, mask_of(tokens, keys, band)))


def test_blocks_that_are_listed():
  arrays, tokens = draw(0), rows([[24], [10, 9]], 24)
  ids = np.int32([[[0, -1, -1], [1, 0, -1], [2, 0, -1]], [[0, -1, -1], [-1, -1, -1], [0, 1, 2]]])
  way = Pass(Listed(ids), Sizes(8, 8), 3)
  visits = np.zeros((2, 24, 24), bool)
  for b, i, t in np.ndindex(ids.shape):
    if ids[b, i, t] >= 0:
      visits[b, i * 8 : i * 8 + 8, ids[b, i, t] * 8 : ids[b, i, t] * 8 + 8] = True
  q, k, v, do, dlse = arrays
  expected = oracle(*arrays, visits & mask_of(tokens, tokens, Band()))
  how = blocks.How(Band(), SCALE)
  run = lambda q, k, v: blocks.block_attention(how, q, k, v, tokens, tokens, Plan(way, way, way))
  (o, lse), back = jax.vjp(run, q, k, v)
  check((o, lse, *back((do, jnp.where(lse == -jnp.inf, 0, dlse)))), expected)
  plain = reference.block_attention(q, k, v, tokens, tokens, Band(), way, SCALE)
  check(plain, expected[:2])


def test_branches_merge_into_one_softmax():
  (q, k, v, do, dlse), tokens = draw(3), rows([[24], [11, 7]], 24)

  def apart(q, k, v):
    parts = [banded_attention(q, k, v, tokens, tokens, b, SCALE) for b in (Band(0, 5), Band(5))]
    return merge(parts)

  (o, lse), back = jax.vjp(apart, q, k, v)
  got = o, lse, *back((do, jnp.where(lse == -jnp.inf, 0, dlse)))
  check(got, oracle(q, k, v, do, dlse, mask_of(tokens, tokens, Band())))


def test_bfloat16_stays_within_a_hundredth():
  arrays, tokens = draw(4, H=16, V=16), rows([[24], [11, 7]], 24)
  short = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:4]]
  got = outputs_and_gradients(*short, arrays[4], tokens, tokens, Band(0, 9), None, Sizes(8, 8))
  rounded = [np.float64(np.asarray(x, np.float32)) for x in short]
  expected = oracle(*rounded, arrays[4], mask_of(tokens, tokens, Band(0, 9)))
  check([np.asarray(x, np.float32) for x in got], expected, 1e-2)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'k': np.zeros((2, 24, 2, 5), np.float32)}, 'k: axis H is 5, 6 expected'),
    ({'v': np.zeros((2, 23, 2, 3), np.float32)}, 'v: axis M is 23, 24 expected'),
    ({'keys': rows([[24], [24]], 25)}, 'keys.index: axis length is 25, 24 expected'),
    ({'q': np.zeros((2, 24, 3, 6), np.float32)}, '3 query heads are not a multiple of 2'),
  ],
)
def test_shapes_that_do_not_fit_are_refused_by_axis(change, message):
  q, k, v, _, _ = draw(0)
  tokens = rows([[24], [24]], 24)
  given = {'q': q, 'k': k, 'v': v, 'queries': tokens, 'keys': tokens} | change
  with pytest.raises(ValueError, match=message):
    banded_attention(*given.values(), Band(), SCALE)


@pytest.mark.parametrize(
  'shape', [{'data': 2, 'context': 2, 'tensor': 2}, {'context': 8}, {'data': 2, 'tensor': 4}]
)
def test_a_mesh_gives_what_one_device_gives(shape):
  arrays, tokens = draw(5), rows([[24], [11, 7]], 24)
  sizes, band = Sizes(8, 8), Band(0, 9)
  want = outputs_and_gradients(*arrays, tokens, tokens, band, None, sizes)
  with jax.set_mesh(meshes.make(meshes.Mesh(**shape))):
    got = outputs_and_gradients(*arrays, tokens, tokens, band, None, sizes)
  check(got, [np.asarray(x) for x in want])


@pytest.mark.parametrize('K, on_a_device', [(2, 3), (3, 12)])
def test_heads_are_split_where_each_device_needs_one_kv_head(K, on_a_device, monkeypatch):
  arrays, tokens = draw(7, N=12, K=K), rows([[24], [11, 7]], 24)
  sizes, band, seen = Sizes(8, 8), Band(0, 9), []
  want = outputs_and_gradients(*arrays, tokens, tokens, band, None, sizes)
  whole = blocks.block_attention
  monkeypatch.setattr(
    blocks, 'block_attention', lambda how, q, *rest: seen.append(q.shape[2]) or whole(how, q, *rest)
  )
  with jax.set_mesh(meshes.make(meshes.Mesh(data=2, tensor=4))):
    got = outputs_and_gradients(*arrays, tokens, tokens, band, None, sizes)
  check(got, [np.asarray(x) for x in want])
  assert set(seen) == {on_a_device}


def test_the_tpu_kernels_behind_the_public_function():
  arrays, tokens, band = draw(6), rows([[24], [11, 7]], 24), Band(0, 9)
  got = outputs_and_gradients(*arrays, tokens, tokens, band, None, Sizes(8, 8), 'tpu')
  check(got, oracle(*arrays, mask_of(tokens, tokens, band)))


def test_unasked_it_is_what_has_run_on_its_hardware(monkeypatch):
  assert blocks.implementation_for(None) == 'xla'
  monkeypatch.setattr(platform, 'kernels', lambda: 'gpu')
  assert blocks.implementation_for(None) == 'xla'
  monkeypatch.setattr(platform, 'PROVEN', {('attention', 'gpu')})
  assert blocks.implementation_for(None) == blocks.implementation_for('gpu') == 'gpu'
  with pytest.raises(NotImplementedError, match='known: xla'):
    blocks.implementation_for('mosaic')
