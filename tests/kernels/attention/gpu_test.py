"""The Mosaic GPU kernels: against float64 in jax's interpreter, and lowered for an H200."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention import gpu, gpu_backward, gpu_tiles
from r1jax.kernels.attention.lists import Band, Listed, Range, Sizes, Tokens, banded
from tests.kernels.cuda import INTERPRET, lowered, without_races

SCALE = 0.3


def draw(seed, B, L, M, N, K, H, V):
  """Queries, keys, values and cotangents of both outputs."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, M, K, H), (B, M, K, V), (B, L, N, V), (B, L, N))
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def row(lengths, L):
  """Tokens of one row packed with segments of these lengths, the rest padding."""
  segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
  segments = np.pad(segments, (0, L - len(segments)))
  return Tokens(np.arange(L, dtype=np.int32)[None], segments.astype(np.int32)[None])


def mask_of(queries, keys, band, pairs_IJ, sizes):
  """Which pairs see each other, [L, M], of those in blocks that visit each other."""
  (qi, qs), (ki, ks) = (tuple(x[0] for x in tokens) for tokens in (queries, keys))
  distance = qi[:, None] - ki
  far = 2**30 if band.far is None else band.far
  seen = (qs[:, None] == ks) & (ks > 0) & (distance >= band.near) & (distance < far)
  return seen & np.repeat(np.repeat(pairs_IJ, sizes.query, 0), sizes.key, 1)


def oracle(q, k, v, do, dlse, mask, cap):
  """(o, lse, dq, dk, dv) in float64 for one row, a head at a time."""
  q, k, v, do, dlse = (np.float64(x[0]) for x in (q, k, v, do, dlse))
  o, lse = np.zeros(do.shape), np.full(dlse.shape, -np.inf)
  dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
  for n in range(q.shape[1]):
    kv = n // (q.shape[1] // k.shape[1])
    s = SCALE * q[:, n] @ k[:, kv].T
    tanh = np.tanh(s / cap) if cap else 0
    s = cap * tanh if cap else s
    e = np.exp(s - s.max()) * mask
    total = np.where(mask.any(1), e.sum(1), 1)
    lse[:, n] = np.where(mask.any(1), np.log(total) + s.max(), -np.inf)
    p = e / total[:, None]
    o[:, n] = p @ v[:, kv]
    inner = do[:, n] @ v[:, kv].T - (do[:, n] * o[:, n]).sum(1)[:, None] + dlse[:, n, None]
    ds = SCALE * p * inner * (1 - tanh**2)
    dq[:, n] = ds @ k[:, kv]
    dk[:, kv] += ds.T @ q[:, n]
    dv[:, kv] += p.T @ do[:, n]
  return [x[None] for x in (o, lse, dq, dk, dv)]


def visits(queries, keys, band, sizes, chosen):
  """(forward, transposed, pairs_IJ) of a band, or of chosen blocks, with an empty row."""
  I, J = queries[0].shape[1] // sizes.query, keys[0].shape[1] // sizes.key
  if not chosen:
    both = [Range(*(np.asarray(x) for x in banded(queries, keys, band, sizes, t))) for t in (0, 1)]
    first, count = (x[0] for x in both[0])
    return *both, (np.arange(J) >= first[:, None]) & (np.arange(J) < (first + count)[:, None])
  pairs = np.tri(I, J, dtype=bool)
  pairs[I // 2], pairs[0, -1] = False, True

  def listed(pairs):
    ids = [np.flatnonzero(there)[::-1] for there in pairs]
    padded = [np.pad(x, (0, pairs.shape[1] - len(x)), constant_values=-1) for x in ids]
    return Listed(np.int32(padded)[None])

  return listed(pairs), listed(pairs.T), pairs


def gradients(arrays, queries, keys, ways, sizes, band, cap, interpret=False, run=None):
  """(o, lse, dq, dk, dv) of the three kernels, each with its visits and block sizes."""
  q, k, v, do, dlse = arrays
  run = run or (lambda f, *args: f(*args))

  def call(i, kernel, *args):
    most = (q if i == 2 else k).shape[1] // 64
    fixed = (ways[i], most, sizes[i], band, SCALE, cap, interpret)
    return run(lambda *x: kernel(*x, queries, keys, *fixed), *args)

  o, lse = call(0, gpu.forward, q, k, v)
  delta = jnp.einsum('BLNV,BLNV->BLN', do, o, preferred_element_type=jnp.float32) - dlse
  args = (q, k, v, do, lse, delta)
  dq = call(1, gpu_backward.d_query, *args)
  return o, lse, dq, *call(2, gpu_backward.d_key_value, *args)


def check(got, expected, atol):
  for name, a, b in zip(('o', 'lse', 'dq', 'dk', 'dv'), got, expected):
    bound = atol * max(1, np.abs(b[np.isfinite(b)]).max())
    np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
  'band, cap, sizes, chosen, lengths, heads, widths',
  [
    (Band(), None, Sizes(128, 64), False, [75, 40], (2, 1), (64, 64)),
    (Band(0, 70), 0.7, Sizes(64, 128), False, [128], (1, 1), (64, 64)),
    pytest.param(
      Band(1), None, Sizes(64, 64), True, [100, 60], (1, 1), (128, 64), marks=pytest.mark.slow
    ),
  ],
)
def test_outputs_and_gradients_in_the_interpreter(
  band, cap, sizes, chosen, lengths, heads, widths, monkeypatch
):
  monkeypatch.setattr(gpu_tiles, 'STAGES', 2)  # so that stages are used again
  L = -(-sum(lengths) // 64) * 64
  tokens, arrays = row(lengths, L), draw(1, 1, L, L, *heads, *widths)
  forth, back, pairs = visits(tokens, tokens, band, sizes, chosen)
  got = gradients(
    arrays, tokens, tokens, (forth, forth, back), (sizes,) * 3, band, cap, INTERPRET, without_races
  )
  check(got, oracle(*arrays, mask_of(tokens, tokens, band, pairs, sizes), cap), 1e-5)


BANDS = (Band(), Band(1), Band(2), Band(0, 127), Band(0, 128), Band(0, 64), Band(64))


@pytest.mark.parametrize('lengths', [[128], [64, 64], [100, 20], [64]])
@pytest.mark.parametrize('band', BANDS)
def test_blocks_that_see_each_other_wholly_are_not_masked(band, lengths):
  tokens = row(lengths, 128)
  q, k = gpu_tiles.beside(tokens, 64, -2)[0], gpu_tiles.beside(tokens, 64, -1)[0]
  mask = mask_of(tokens, tokens, band, np.ones((2, 2), bool), Sizes(64, 64))
  for i, j in np.ndindex(2, 2):
    seen = mask[64 * i :, 64 * j :][:64, :64]
    got = gpu_tiles.masked(jnp.zeros((64, 64)), q[i], k[j], 0, band)
    np.testing.assert_array_equal(got == 0, seen)
    turned = gpu_tiles.masked(jnp.zeros((64, 64)), q[i], k[j], 1, band)
    np.testing.assert_array_equal(turned == 0, seen.T)
    blind = gpu_tiles.masked(jnp.zeros((64, 64)), q[i].at[1].set(-7), k[j], 0, band)
    assert (blind == 0).all() == seen.all()


def in_bfloat16(H, V, chosen, L=1024):
  """Arguments of `gradients`, and the mask."""
  sizes = (Sizes(128, 64),) * 3 if chosen else gpu.SIZES
  band, tokens = Band(0, 300), row([L // 2 + 70, L // 2 - 170], L)
  ways = [visits(tokens, tokens, band, s, chosen) for s in sizes]
  arrays = draw(0, 1, L, L, 4, 2, H, V)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:4]] + [arrays[4]]
  mask = mask_of(tokens, tokens, band, ways[0][2], sizes[0])
  visited = (ways[0][0], ways[1][0], ways[2][1])
  return (arrays, tokens, tokens, visited, sizes, band, 5.0 if chosen else None), mask


@pytest.mark.parametrize('H, V, chosen', [(64, 64, 0), (128, 128, 0), (192, 128, 0), (128, 64, 1)])
def test_lowers_for_an_h200(H, V, chosen):
  (arrays, *rest), _ = in_bfloat16(H, V, chosen)
  text = lowered(lambda arrays: gradients(arrays, *rest), arrays)
  for name in ('forward', 'd_query', 'd_key_value'):
    assert f'block_attention_{name}' in text


@pytest.mark.gpu
@pytest.mark.parametrize('H, V, chosen', [(64, 64, 0), (128, 128, 0), (192, 128, 0), (128, 64, 1)])
def test_agrees_with_float64_on_a_gpu(H, V, chosen):
  (arrays, *rest), mask = in_bfloat16(H, V, chosen)
  got = jax.jit(lambda arrays: gradients(arrays, *rest))(arrays)
  rounded = [np.asarray(x, np.float32) for x in arrays]
  check([np.asarray(x, np.float32) for x in got], oracle(*rounded, mask, rest[-1]), 2e-2)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'dtype': np.float32}, 'float32.*all bfloat16'),
    ({'V': 128}, 'widths 64 and 128; multiples of 64, V at most H'),
    ({'sizes': Sizes(256, 64)}, 'up to 192 for what a block owns'),
    ({'H': 256, 'sizes': Sizes(128, 256)}, 'bytes of shared memory of 225280; take less'),
  ],
)
def test_what_the_kernels_cannot_do_is_refused(change, message):
  given = {'H': 64, 'V': 64, 'dtype': jnp.bfloat16, 'sizes': Sizes(128, 64)} | change
  q, k, v = (jnp.zeros((1, 256, 1, given[w]), given['dtype']) for w in 'HHV')
  tokens = row([256], 256)
  way = visits(tokens, tokens, Band(), Sizes(128, 64), False)[0]
  with pytest.raises(NotImplementedError, match=message):
    gpu.forward(q, k, v, tokens, tokens, way, 4, given['sizes'], Band(), SCALE, None)
