"""Attention over listed pages against loops in float64 numpy: outputs, lse and all gradients."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.selected import reference, selected_attention, xla
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh

B, L, N, K, H, V, SCALE = 2, 24, 4, 2, 6, 3, 0.4
packed = st.lists(
  st.lists(st.integers(1, 12), min_size=1, max_size=4).filter(lambda row: sum(row) <= L),
  min_size=B, max_size=B,
)  # fmt: skip


def draw(seed, shared=False):
  """q, k, v and the cotangents of both outputs; v None where the key holds it."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, L, K, H), (B, L, K, V), (B, L, N, V), (B, L, N))
  q, k, v, do, dlse = (rng.normal(size=s).astype(np.float32) for s in shapes)
  return q, k, None if shared else v, do, dlse


def lists(seed, size, heads, T):
  """Random pages, some of them −1, and a query whose list is empty."""
  rng = np.random.default_rng(seed)
  every = np.tile(np.arange(L // size, dtype=np.int32), (B, L, heads, 1))
  ids = rng.permuted(every, axis=-1)[..., :T]
  ids[rng.random(ids.shape) < 0.2] = -1
  ids[1, 5] = -1
  return ids


def rows(lengths):
  """Tokens of rows packed with segments of these lengths, the rest padding."""
  segments = [[s + 1 for s, n in enumerate(row) for _ in range(n)] for row in lengths]
  segments = [row + [0] * (L - len(row)) for row in segments]
  return Tokens(np.tile(np.arange(L, dtype=np.int32), (B, 1)), np.int32(segments))


def oracle(q, k, v, do, dlse, ids, size, tokens, keys=None):
  """(o, lse, dq, dk, dv) in float64, one query and head at a time; without v dv is in dk.

  `keys` are tokens of keys that lie elsewhere than the queries.
  """
  width = do.shape[-1]
  shared, v = v is None, k[..., :width] if v is None else v
  q, k, v, do, dlse = (np.float64(x) for x in (q, k, v, do, dlse))
  o, lse = np.zeros(do.shape), np.full(dlse.shape, -np.inf)
  dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
  (index, segments), (there, same) = tokens, tokens if keys is None else keys
  for b, l, n in np.ndindex(q.shape[:3]):
    kv = n // (q.shape[2] // k.shape[2])
    own = ids[b, l, kv % ids.shape[2]]
    at = [p * size + s for p in own[own >= 0] for s in range(size)]
    at = [m for m in at if same[b, m] == segments[b, l] > 0 and there[b, m] <= index[b, l]]
    if not at:
      continue
    s = SCALE * k[b, at, kv] @ q[b, l, n]
    lse[b, l, n] = np.log(np.exp(s).sum())
    p = np.exp(s - lse[b, l, n])
    o[b, l, n] = p @ v[b, at, kv]
    ds = SCALE * p * (v[b, at, kv] @ do[b, l, n] - do[b, l, n] @ o[b, l, n] + dlse[b, l, n])
    dq[b, l, n] = ds @ k[b, at, kv]
    dk[b, at, kv] += np.outer(ds, q[b, l, n])
    dv[b, at, kv] += np.outer(p, do[b, l, n])
  if shared:
    dk[..., :width] += dv
    return o, lse, dq, dk
  return o, lse, dq, dk, dv


@functools.partial(jax.jit, static_argnames=('size', 'chunk', 'implementation'))
def outputs_and_gradients(q, k, v, do, dlse, ids, tokens, size, chunk=10, implementation='xla'):
  run = lambda *kv: selected_attention(
    kv[0], kv[1], kv[2] if v is not None else None, ids, size, tokens, tokens, SCALE,
    value_width=V if v is None else None, chunk=chunk, implementation=implementation,
  )  # fmt: skip
  (o, lse), back = jax.vjp(run, q, k, *([] if v is None else [v]))
  return o, lse, *back((do, jnp.where(lse == -jnp.inf, 0, dlse)))


def check(got, expected, tolerance=1e-5):
  assert len(got) == len(expected)
  for name, a, b in zip(('o', 'lse', 'dq', 'dk', 'dv'), got, expected):
    bound = tolerance * max(1, np.abs(b[np.isfinite(b)]).max(initial=0))
    np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=bound, err_msg=name)


# Places in a page, pages listed, lists, whether values lie in the keys.
KINDS = ((1, 7, 1, True), (1, 7, K, False), (4, 3, K, True), (24, 1, 1, False))


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
@hypothesis.given(seed=st.integers(0, 99), lengths=packed, kind=st.sampled_from(KINDS))
@hypothesis.settings(max_examples=16)
def test_pages_of_packed_rows(implementation, seed, lengths, kind):
  (size, T, heads, shared), tokens = kind, rows(lengths)
  arrays, ids = draw(seed, shared), lists(seed, size, heads, T)
  got = outputs_and_gradients(*arrays, ids, tokens, size, implementation=implementation)
  check(got, oracle(*arrays, ids, size, tokens))


def test_a_query_that_sees_nothing_gives_zero_and_no_gradient():
  (q, k, v, do, dlse), tokens = draw(0), rows([[24], [3, 9]])
  ids = lists(0, 1, 1, 7)
  o, lse, dq, *_ = outputs_and_gradients(q, k, v, do, dlse, ids, tokens, 1)
  for nothing in ((1, 5), (1, 20)):
    assert (o[nothing] == 0).all()
    assert (lse[nothing] == -np.inf).all()
    assert (dq[nothing] == 0).all()


def test_bfloat16_stays_within_a_hundredth():
  tokens, ids = rows([[24], [11, 9]]), lists(1, 4, K, 3)
  arrays = draw(1)
  short = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:4]]
  got = outputs_and_gradients(*short, arrays[4], ids, tokens, 4)
  rounded = [np.asarray(x, np.float32) for x in short]
  check(got, oracle(*rounded, arrays[4], ids, 4, tokens), 2e-2)


def test_keys_may_lie_elsewhere_than_the_queries():
  """Rows of keys that were gathered: fewer than queries, with indices of their own."""
  (q, k, v, do, dlse), tokens = draw(2), rows([[24], [11, 9]])
  at = np.arange(0, L, 2)
  keys = Tokens(*(x[:, at] for x in tokens))
  ids = np.tile(np.arange(12, dtype=np.int32), (B, L, 1, 1))
  got = selected_attention(q, k[:, at], v[:, at], ids, 1, tokens, keys, SCALE)
  everywhere = np.tile(np.int32(at), (B, L, 1, 1))
  check(got, oracle(q, k, v, do, dlse, everywhere, 1, tokens)[:2])


def test_what_is_scattered_lands_in_its_own_page_or_nowhere():
  y = np.ones((1, 1, 1, 4, 1), np.float32)
  got = xla.scatter_add(jnp.zeros((1, 6, 1, 1)), np.int32([[[[2, -1]]]]), 2, y)
  np.testing.assert_array_equal(got[0, :, 0, 0], [0, 0, 0, 0, 1, 1])


def test_probabilities_of_nothing_are_zero_and_finite_in_both_directions():
  seen = np.array([[True, False], [False, False]])
  s = jnp.array([[1.0, jnp.inf], [5.0, 2.0]])
  (p, lse), back = jax.vjp(lambda s: reference.softmax(s, seen), s)
  np.testing.assert_array_equal(p, [[1, 0], [0, 0]])
  np.testing.assert_array_equal(lse, [1, -np.inf])
  np.testing.assert_array_equal(
    back((jnp.ones((2, 2)), jnp.array([1.0, 0.0])))[0], [[1, 0], [0, 0]]
  )


@pytest.mark.parametrize(
  'kv_heads, heads, mesh',
  [
    (K, 1, Mesh(data=2, context=2, tensor=2)),
    (K, K, Mesh(data=2, context=2, tensor=2)),
    (1, 1, Mesh(data=2, context=2, tensor=2)),
    (K, K, Mesh(data=2, tensor=4)),  # two devices share a kv head
  ],
)
def test_a_mesh_gives_what_one_device_gives(kv_heads, heads, mesh):
  tokens, ids = rows([[24], [11, 9]]), lists(0, 4, heads, 3)
  q, k, v, do, dlse = draw(0)
  arrays = q, k[:, :, :kv_heads], v[:, :, :kv_heads], do, dlse
  expected = outputs_and_gradients(*arrays, ids, tokens, 4)
  with jax.set_mesh(meshes.make(mesh)):
    got = outputs_and_gradients(*arrays, ids, tokens, 4)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def temporaries(length, size):
  """Bytes of temporaries of the compiled gradient on one row of this length."""
  array = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
  tokens = Tokens(*(jax.ShapeDtypeStruct((1, length), np.int32),) * 2)
  ids = jax.ShapeDtypeStruct((1, length, K, 16), np.int32)

  def program(q, k, v, ids, tokens):
    of = lambda *x: selected_attention(*x, ids, size, tokens, tokens, SCALE)[0].sum()
    return jax.grad(of, (0, 1, 2))(q, k, v)

  shapes = array(1, length, N, H), array(1, length, K, H), array(1, length, K, V)
  return jax.jit(program).lower(*shapes, ids, tokens).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.optimized
@pytest.mark.parametrize('size', [1, 8])
def test_memory_is_linear_in_the_length(size):
  short, long = (temporaries(n, size) for n in (1024, 8192))
  assert long < 8.5 * short
  assert long < 8192 * 8192 // 4  # a byte for each L×M pair would be four times that


@pytest.mark.parametrize(
  'change, message',
  [
    ({'v': np.zeros((B, L, K + 1, V), np.float32)}, 'v_BMKV is'),
    ({'ids': np.zeros((B, L, 3, 4), np.int32)}, '3 lists a query; 1 or 2'),
    ({'size': 5}, '24 keys are no whole pages of 5'),
    ({'q': np.zeros((B, L, 3, H), np.float32)}, '3 query heads are not a multiple of 2'),
    ({'v': None}, 'give v_BMKV, or None for it and value_width'),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  q, k, v, _, _ = draw(0)
  given = {'q': q, 'k': k, 'v': v, 'ids': np.zeros((B, L, 1, 4), np.int32), 'size': 4} | change
  tokens = rows([[24], [24]])
  with pytest.raises(ValueError, match=message):
    selected_attention(*given.values(), tokens, tokens, SCALE)
