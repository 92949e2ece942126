"""The TPU kernels, interpreted on the CPU, against float64 numpy; blocks there may be small."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention import tpu
from r1jax.kernels.attention.lists import Band, Listed, Range, Sizes, Tokens, banded

B, L, M, N, K, H, V = 2, 32, 48, 4, 2, 12, 8
SIZES = Sizes(16, 8)
I, J = L // SIZES.query, M // SIZES.key
SCALE = 0.3


def draw(seed, B=B, L=L, M=M, N=N, K=K, H=H, V=V):
  """Queries, keys, values and cotangents of both outputs."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, M, K, H), (B, M, K, V), (B, L, N, V), (B, L, N))
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def places(rng, length, segments=3):
  """Ascending indices with gaps; ascending segments, then padding."""
  index = np.sort(rng.choice(60, (B, length)), 1).astype(np.int32)
  segment = np.sort(rng.integers(1, segments + 1, (B, length)), 1).astype(np.int32)
  segment[:, length - rng.integers(0, 12) :] = 0
  return Tokens(index, segment)


def sees(queries, keys, band):
  """mask_BLM of segments and distances."""
  distance = queries.index_BM[:, :, None] - keys.index_BM[:, None]
  same = queries.segments_BM[:, :, None] == keys.segments_BM[:, None]
  seen = same & (keys.segments_BM > 0)[:, None] & (distance >= band.near)
  return seen if band.far is None else seen & (distance < band.far)


def listed(pairs_BIJ):
  """A choice of pairs of blocks as ids, −1-padded."""
  ids = np.full(pairs_BIJ.shape, -1, np.int32)
  for b, i in np.ndindex(pairs_BIJ.shape[:2]):
    chosen = np.flatnonzero(pairs_BIJ[b, i])
    ids[b, i, : len(chosen)] = chosen[::-1]
  return Listed(jnp.asarray(ids))


def oracle(q, k, v, do, dlse, mask, cap=None):
  """(o, lse, dq, dk, dv) in float64."""
  q, k, v, do, dlse = (np.float64(x) for x in (q, k, v, do, dlse))
  heads = k.shape[2]
  k, v = (np.repeat(x, q.shape[2] // heads, 2) for x in (k, v))
  s = SCALE * np.einsum('blnh,bmnh->bnlm', q, k)
  t = np.tanh(s / cap) if cap else np.zeros_like(s)
  e = np.where(mask[:, None], np.exp(cap * t if cap else s), 0)
  total = e.sum(-1, keepdims=True)
  p = e / np.where(total == 0, 1, total)
  with np.errstate(divide='ignore'):
    lse = np.log(total[..., 0]).transpose(0, 2, 1)
  o = np.einsum('bnlm,bmnv->blnv', p, v)
  delta = (do * o).sum(-1) - dlse
  dp = np.einsum('blnv,bmnv->bnlm', do, v) - delta.transpose(0, 2, 1)[..., None]
  ds = SCALE * p * dp * (1 - t**2)
  grouped = lambda x: x.reshape(*x.shape[:2], heads, -1, x.shape[-1]).sum(3)
  dk = grouped(np.einsum('bnlm,blnh->bmnh', ds, q))
  dv = grouped(np.einsum('bnlm,blnv->bmnv', p, do))
  return o, lse, np.einsum('bnlm,bmnh->blnh', ds, k), dk, dv


@functools.partial(jax.jit, static_argnames=('band', 'cap', 'most', 'sizes', 'interpret'))
def kernels(
  q, k, v, do, dlse, queries, keys, visits, visitors, band, cap, most, sizes=SIZES, interpret=True
):
  """What `oracle` gives, from the three kernels."""
  rest = (sizes, band, SCALE, cap, interpret)
  o, lse = tpu.forward(q, k, v, queries, keys, visits, most[0], *rest)
  delta = (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(-1) - dlse
  args = (q, k, v, do, lse, delta, queries, keys)
  dq = tpu.d_query(*args, visits, most[0], *rest)
  return o, lse, dq, *tpu.d_key_value(*args, visitors, most[1], *rest)


def check(got, expected, atol=1e-5):
  for name, a, b in zip(('o', 'lse', 'dq', 'dk', 'dv'), got, expected):
    scale = max(1, np.abs(b[np.isfinite(b)]).max(initial=0))
    np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=atol * scale, err_msg=name)


RULES = ((Band(), None), (Band(0, 17), 0.7), (Band(3, 30), None))


@hypothesis.given(
  seed=st.integers(0, 9999), rule=st.sampled_from(RULES), share=st.sampled_from([0.2, 0.7])
)
@hypothesis.settings(max_examples=30)
def test_any_choice_of_blocks(seed, rule, share):
  rng, (band, cap) = np.random.default_rng(seed), rule
  arrays, queries, keys = draw(seed), places(rng, L), places(rng, M)
  pairs = rng.random((B, I, J)) < share
  mask = np.repeat(np.repeat(pairs, SIZES.query, 1), SIZES.key, 2) & sees(queries, keys, band)
  visits, visitors = listed(pairs), listed(pairs.transpose(0, 2, 1))
  got = kernels(*arrays, queries, keys, visits, visitors, band, cap, (J, I))
  check(got, oracle(*arrays, mask, cap))


@hypothesis.given(seed=st.integers(0, 9999), rule=st.sampled_from(RULES))
@hypothesis.settings(max_examples=30)
def test_ranges_that_cover_the_band(seed, rule):
  rng, (band, cap) = np.random.default_rng(seed), rule
  arrays, queries, keys = draw(seed), places(rng, L), places(rng, M)
  visits = banded(queries, keys, band, SIZES)
  visitors = banded(queries, keys, band, SIZES, transposed=True)
  got = kernels(*arrays, queries, keys, visits, visitors, band, cap, (J, I))
  check(got, oracle(*arrays, sees(queries, keys, band), cap))


@pytest.fixture
def tiny():
  """Three blocks of queries and keys; each visits itself and the one before."""
  arrays = draw(5, L=24, M=24)
  at = np.tile(np.arange(24, dtype=np.int32), (B, 1))
  tokens = Tokens(at, np.int32([[1] * 24, [1] * 9 + [2] * 12 + [0] * 3]))
  pairs = np.tile(np.eye(3, dtype=bool) | np.eye(3, k=-1, dtype=bool), (B, 1, 1))
  visits = listed(pairs), listed(pairs.transpose(0, 2, 1))
  return arrays, tokens, visits, Band(0, 8), Sizes(8, 8)


def test_no_races_and_nothing_uninitialized_is_read(tiny, capsys):
  arrays, tokens, visits, band, sizes = tiny
  simulated = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2
  )
  got = kernels(*arrays, tokens, tokens, *visits, band, None, (2, 2), sizes, simulated)
  check(got, oracle(*arrays, sees(tokens, tokens, band)))
  assert 'RACE DETECTED' not in capsys.readouterr().out


def test_only_visited_blocks_are_read(tiny):
  (q, k, v, do, dlse), tokens, visits, band, sizes = tiny
  broken = [np.concatenate([x, np.full_like(x, np.nan)], 1) for x in (k, v)]
  keys = Tokens(*(np.concatenate([x, x], 1) for x in tokens))
  rest = (tokens, keys, visits[0], 2, sizes, band, SCALE, None, True)
  o, lse = tpu.forward(q, *broken, *rest)
  check((o, lse), oracle(q, k, v, do, dlse, sees(tokens, tokens, band))[:2])


def test_where_nothing_is_visited_outputs_and_gradients_are_zero(tiny):
  arrays, tokens, _, band, sizes = tiny
  none = Listed(jnp.full((B, 3, 2), -1))
  o, lse, *grads = kernels(*arrays, tokens, tokens, none, none, band, None, (2, 2), sizes)
  assert (lse == -jnp.inf).all()
  assert not any(x.any() for x in (o, *grads))


def test_bfloat16_is_summed_in_fp32(tiny):
  arrays, tokens, visits, band, sizes = tiny
  short = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:4]]
  got = kernels(*short, arrays[4], tokens, tokens, *visits, band, None, (2, 2), sizes)
  assert [x.dtype.name for x in got] == ['bfloat16', 'float32'] + ['bfloat16'] * 3
  rounded = [np.asarray(x, np.float32) for x in short]
  check(got, oracle(*rounded, arrays[4], sees(tokens, tokens, band)), 1e-2)


def test_heads_may_lie_on_several_devices(tiny):
  arrays, tokens, visits, band, sizes = tiny
  mesh = jax.make_mesh((2,), ('tensor',), axis_types=(jax.sharding.AxisType.Auto,))
  heads, rest = jax.P(None, None, 'tensor'), (tokens, tokens, *visits)
  run = jax.shard_map(
    lambda *x: kernels(*x, band=band, cap=None, most=(2, 2), sizes=sizes),
    mesh=mesh,
    in_specs=(heads,) * 5 + (jax.P(),) * 4,
    out_specs=heads,
  )
  check(jax.jit(run)(*arrays, *rest), oracle(*arrays, sees(tokens, tokens, band)))


def test_blocks_as_large_as_on_the_chip():
  arrays = draw(7, B=1, L=512, M=512, N=2, K=1, H=16, V=8)
  at = np.arange(512, dtype=np.int32)[None]
  tokens = Tokens(at, np.int32([[1] * 100 + [2] * 330 + [0] * 82]))
  sizes, band = Sizes(256, 128), Band(0, 200)
  visits, visitors = (banded(tokens, tokens, band, sizes, x) for x in (False, True))
  got = kernels(*arrays, tokens, tokens, visits, visitors, band, None, (4, 2), sizes)
  check(got, oracle(*arrays, sees(tokens, tokens, band)))


def test_blocks_that_no_register_holds_are_refused(tiny):
  (q, k, v, *_), tokens, visits, band, sizes = tiny
  with pytest.raises(ValueError, match=r'multiples of 128, Sizes\(query=8, key=8\) was given'):
    tpu.forward(q, k, v, tokens, tokens, visits[0], 2, sizes, band, SCALE)


@pytest.mark.parametrize(
  'band, group, length, memory, sizes',
  [
    (Band(), 1, 8192, 8192, Sizes(512, 512)),
    (Band(0, 512), 1, 8192, 8192, Sizes(256, 256)),
    (Band(0, 512), 4, 8192, 8192, Sizes(128, 256)),
    (Band(0, 1), 3, 8192, 8192, Sizes(128, 128)),
    (Band(512), 32, 8192, 8192, Sizes(128, 128)),
    (Band(), 1, 100, 300, Sizes(128, 384)),
  ],
)
def test_default_sizes(band, group, length, memory, sizes):
  assert tpu.default_sizes(band, group, length, memory) == sizes


def test_visits_beyond_scalar_memory_are_refused():
  rows, length = 130, 131072
  array = lambda *shape: jax.ShapeDtypeStruct((rows, length, *shape), jnp.bfloat16)
  place = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  block = jax.ShapeDtypeStruct((rows, length // 128), jnp.int32)
  args = (array(1, 128),) * 3 + (Tokens(place, place),) * 2 + (Range(block, block),)
  with pytest.raises(ValueError, match='visits of 1064960 bytes, 1032192 fit: larger blocks'):
    jax.eval_shape(lambda *x: tpu.forward(*x, 8, Sizes(128, 128), Band(), SCALE), *args)
