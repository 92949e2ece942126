"""The indexer against loops in float64 numpy: what it selects, its loss and the loss's gradient."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.index import kl_dense, kl_selected, reference, top_k, xla
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh

B, L, N, K, H, J, I, SCALE = 2, 20, 4, 2, 6, 3, 5, 0.4
packed = st.lists(
  st.lists(st.integers(1, 11), min_size=1, max_size=3).filter(lambda row: sum(row) <= L),
  min_size=B, max_size=B,
)  # fmt: skip


def draw(seed):
  """The attention's q and k, the indexer's q, k and w."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, L, K, H), (B, L, J, I), (B, L, I), (B, L, J))
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def rows(lengths):
  """Tokens of rows packed with segments of these lengths, the rest padding."""
  segments = [[s + 1 for s, n in enumerate(row) for _ in range(n)] for row in lengths]
  segments = [row + [0] * (L - len(row)) for row in segments]
  return Tokens(np.tile(np.arange(L, dtype=np.int32), (B, 1)), np.int32(segments))


def seen_by(tokens, b, t):
  """Places that a query sees."""
  index, segments = (x[b] for x in tokens)
  return np.flatnonzero((segments == segments[t]) & (segments > 0) & (index <= index[t]))


def score(qi, ki, wi, b, t, at):
  return wi[b, t] @ np.maximum(qi[b, t] @ ki[b, at].T, 0)


def oracle(arrays, tokens, ids=None):
  """(Σ KL, tokens, dq, dk, dw), one query at a time in float64."""
  q, k, qi, ki, wi = (np.float64(x) for x in arrays)
  total, count, grads = 0.0, 0, [np.zeros(x.shape) for x in (qi, ki, wi)]
  for b, t in np.ndindex(B, L):
    at = seen_by(tokens, b, t)
    at = at if ids is None else np.intersect1d(at, ids[b, t])
    if not at.size:
      continue
    e = [np.exp(SCALE * k[b, at, n // (N // K)] @ q[b, t, n]) for n in range(N)]
    p = sum(x / x.sum() for x in e) / N
    s = score(qi, ki, wi, b, t, at)
    soft = np.exp(s) / np.exp(s).sum()
    total, count = total + np.sum(p * np.log(p / soft)), count + 1
    z = qi[b, t] @ ki[b, at].T
    dz = np.outer(wi[b, t], soft - p) * (z > 0)
    grads[0][b, t] = dz @ ki[b, at]
    grads[1][b, at] += dz.T @ qi[b, t]
    grads[2][b, t] = np.maximum(z, 0) @ (soft - p)
  return total, count, *grads


@functools.partial(jax.jit, static_argnames=('chunk', 'implementation'))
def loss_and_gradients(arrays, tokens, ids, chunk, implementation):
  q, k, *indexer = arrays

  def loss(*indexer):
    given = (q, k, SCALE, *indexer, tokens, tokens)
    kwargs = {'chunk': chunk, 'implementation': implementation}
    total, n = kl_dense(*given, **kwargs) if ids is None else kl_selected(*given, ids, **kwargs)
    return 3 * total, (total, n)

  grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*indexer)
  return *out, *(g / 3 for g in grads)


def check(got, expected):
  for name, a, b in zip(('kl', 'tokens', 'dq', 'dk', 'dw'), got, expected):
    bound = 1e-5 * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


IMPLEMENTATIONS = [('xla', 8), ('xla', 64), ('reference', 8)]


@pytest.mark.parametrize('implementation, chunk', IMPLEMENTATIONS)
@hypothesis.given(seed=st.integers(0, 99), lengths=packed)
@hypothesis.settings(max_examples=10)
def test_divergence_over_all_that_is_seen(implementation, chunk, seed, lengths):
  arrays, tokens = draw(seed), rows(lengths)
  got = loss_and_gradients(arrays, tokens, None, chunk, implementation)
  check(got, oracle(arrays, tokens))


@pytest.mark.parametrize('implementation, chunk', IMPLEMENTATIONS)
@hypothesis.given(seed=st.integers(0, 99), lengths=packed)
@hypothesis.settings(max_examples=10)
def test_divergence_over_a_selection(implementation, chunk, seed, lengths):
  arrays, tokens = draw(seed), rows(lengths)
  rng = np.random.default_rng(seed)
  ids = rng.permuted(np.tile(np.int32(np.arange(L)), (B, L, 1)), axis=-1)[..., :7]
  ids[rng.random(ids.shape) < 0.2] = -1
  ids[0, 3] = -1
  got = loss_and_gradients(arrays, tokens, ids, chunk, implementation)
  check(got, oracle(arrays, tokens, ids))


@pytest.mark.parametrize('implementation', ['xla', 'reference'])
def test_the_attention_is_a_constant_of_the_loss(implementation):
  (q, k, *indexer), tokens = draw(0), rows([[20], [9, 8]])

  def loss(q, k):
    return kl_dense(q, k, SCALE, *indexer, tokens, tokens, implementation=implementation)[0]

  assert all((g == 0).all() for g in jax.jit(jax.grad(loss, (0, 1)))(q, k))


@pytest.mark.parametrize('implementation, chunk', IMPLEMENTATIONS)
@hypothesis.given(seed=st.integers(0, 99), lengths=packed, k=st.sampled_from([4, 30]))
@hypothesis.settings(max_examples=10)
def test_the_best_seen_keys_come_first_and_then_nothing(implementation, chunk, seed, lengths, k):
  (_, _, *indexer), tokens = draw(seed), rows(lengths)
  run = jax.jit(top_k, static_argnames=('k', 'chunk', 'implementation'))
  ids = np.asarray(run(*indexer, tokens, tokens, k=k, chunk=chunk, implementation=implementation))
  assert ids.shape == (B, L, k)
  indexer = [np.float64(x) for x in indexer]
  for b, t in np.ndindex(B, L):
    at = seen_by(tokens, b, t)
    n = min(k, len(at))
    assert (ids[b, t, n:] == -1).all()
    assert set(ids[b, t, :n]) <= set(at) and len(set(ids[b, t, :n])) == n
    got = score(*indexer, b, t, ids[b, t, :n])
    best = np.sort(score(*indexer, b, t, at))[::-1][:n]
    np.testing.assert_allclose(got, best, rtol=0, atol=1e-5)


def test_scores_and_their_gradient_head_by_head():
  indexer, ds = draw(1)[2:], np.random.default_rng(1).normal(size=(B, L, L)).astype(np.float32)
  expected, back = jax.vjp(reference.scores, *indexer)
  np.testing.assert_allclose(xla.scores(*indexer), expected, rtol=0, atol=1e-5)
  for a, b in zip(xla.scores_vjp(*indexer, ds), back(ds)):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_mesh_gives_what_one_device_gives():
  arrays, tokens = draw(0), rows([[20], [9, 8]])
  run = jax.jit(top_k, static_argnames=('k', 'chunk'))
  ids = run(*arrays[2:], tokens, tokens, k=5, chunk=8)
  wanted = [loss_and_gradients(arrays, tokens, x, 8, 'xla') for x in (None, ids)]
  with jax.set_mesh(meshes.make(Mesh(data=2, context=2, tensor=2))):
    np.testing.assert_array_equal(run(*arrays[2:], tokens, tokens, k=5, chunk=8), ids)
    got = [loss_and_gradients(arrays, tokens, x, 8, 'xla') for x in (None, ids)]
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def temporaries(length, program):
  """Bytes of temporaries of the compiled program on rows of this length."""
  array = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
  tokens = Tokens(*(jax.ShapeDtypeStruct((1, length), np.int32),) * 2)
  indexer = array(1, length, J, I), array(1, length, I), array(1, length, J)
  target = array(1, length, N, H), array(1, length, K, H)
  ids = jax.ShapeDtypeStruct((1, length, 16), np.int32)
  return (
    jax.jit(program)
    .lower(target, indexer, tokens, ids)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )


def select(target, indexer, tokens, ids):
  return top_k(*indexer, tokens, tokens, 16, chunk=32)


def warm_up(target, indexer, tokens, ids):
  loss = lambda *x: kl_dense(*target, SCALE, *x, tokens, tokens, chunk=32)[0]
  return jax.value_and_grad(loss, (0, 1, 2))(*indexer)


def sparse(target, indexer, tokens, ids):
  loss = lambda *x: kl_selected(*target, SCALE, *x, tokens, tokens, ids, chunk=32)[0]
  return jax.value_and_grad(loss, (0, 1, 2))(*indexer)


@pytest.mark.optimized
@pytest.mark.parametrize('program', [select, warm_up, sparse])
def test_memory_is_linear_in_the_length(program):
  short, long = (temporaries(n, program) for n in (1024, 8192))
  assert long < 8.5 * short
  assert long < 8192 * 8192 // 4  # a byte for each L×M pair would be four times that


@pytest.mark.parametrize(
  'change, message',
  [
    ({'k_BMI': np.zeros((B, L, I + 1), np.float32)}, 'k_BMI is'),
    ({'w_BLJ': np.zeros((B, L, J + 1), np.float32)}, 'w_BLJ is'),
    ({'keys': Tokens(*np.zeros((2, B, L + 1), np.int32))}, 'keys is'),
  ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change, message):
  q, k, w = draw(0)[2:]
  tokens = rows([[20], [9, 8]])
  given = {'q_BLJI': q, 'k_BMI': k, 'w_BLJ': w, 'queries': tokens, 'keys': tokens} | change
  with pytest.raises(ValueError, match=message):
    top_k(**given, k=3)
