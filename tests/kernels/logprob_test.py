"""The fused head against log_softmax of whole logits; contract 14: those are never made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.logprob import logprobs, score
from r1jax.kernels.logprob.truncate import FILLER, Sampling, support
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh

B, L, D, V = 2, 7, 8, 19
RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(B, L, D)).astype('f4'), RNG.normal(size=(D, V)).astype('f4')
Y = RNG.integers(0, V, (B, L)).astype('i4')
G = RNG.normal(size=(B, L)).astype('f4')


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def oracle(temperature):
  """logp, entropy, and the gradients of Σ g · logp, in closed form in float64."""
  p = softmax(X.astype('f8') @ W.astype('f8') / temperature)
  hot = np.eye(V)[Y]
  dz = G[..., None] * (hot - p) / temperature
  logp = np.log((p * hot).sum(-1))
  entropy = -(p * np.log(p)).sum(-1)
  return logp, entropy, dz @ W.T, np.einsum('BLD,BLV->DV', X, dz)


@pytest.mark.parametrize('chunk, temperature', [(1024, 1.0), (5, 1.0), (7, 0.6), (1, 1.0)])
def test_values_and_gradients_for_chunks_that_need_not_divide(chunk, temperature):
  def weighted(x, w):
    out = logprobs(x, w, Y, Sampling(temperature), chunk)
    return jnp.sum(out.logp * G), out

  grads, got = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(X, W)
  for a, b in zip((*got, *grads), oracle(temperature)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_entropy_has_no_gradient():
  entropy = lambda x: score(x, Y[0], Sampling()).entropy.sum()
  np.testing.assert_array_equal(jax.grad(entropy)(X[0] @ W), np.zeros((L, V)))


def truncated(z, top_k, top_p):
  """Renormalized probabilities in float64: the k most likely, of them the fewest that reach p."""
  p = softmax(z.astype('f8'))
  for row in p:
    order = np.argsort(-row)
    kept = order[: top_k or V]
    mass = np.cumsum(row[kept] / row[kept].sum())
    kept = kept[: 1 + int(np.sum(mass < top_p))]
    row[np.setdiff1d(np.arange(V), kept)] = 0
  return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize(
  'temperature, top_k, top_p',
  [(1.0, 5, 1.0), (1.0, 0, 0.8), (0.6, 0, 0.95), (0.7, 6, 0.9), (1.3, V, 0.5), (2.0, 1, 1.0)],
)
def test_contract_03_the_trainer_scores_the_distribution_that_was_sampled_from(
  temperature, top_k, top_p
):
  sampling = Sampling(temperature, top_k, top_p)
  x_1VD = np.repeat(X[:1, :1], V, 1)
  every_V = np.arange(V, dtype='i4')[None]
  got = logprobs(x_1VD, W, every_V, sampling, chunk=8)
  want = truncated(X[0, :1].astype('f8') @ W.astype('f8') / temperature, top_k, top_p)[0]
  np.testing.assert_array_equal(np.isfinite(got.logp[0]), want > 0)
  np.testing.assert_allclose(np.exp(got.logp[0]), want, rtol=2e-5, atol=1e-7)
  entropy = -np.sum(want[want > 0] * np.log(want[want > 0]))
  np.testing.assert_allclose(got.entropy, np.full((1, V), entropy), rtol=1e-4, atol=1e-6)


def test_contract_03_the_gradient_is_that_of_the_truncated_distribution():
  sampling = Sampling(0.7, 6, 0.9)
  z_LV = X[0] @ W
  p_LV = truncated(z_LV / 0.7, 6, 0.9)
  best_L = p_LV.argmax(-1)
  got = jax.grad(lambda z: score(z, best_L, sampling).logp.sum())(jnp.asarray(z_LV))
  np.testing.assert_allclose(got, (np.eye(V)[best_L] - p_LV) / 0.7, rtol=1e-4, atol=1e-5)


def test_a_target_that_was_cut_off_is_minus_infinite_with_a_finite_gradient():
  z_1V = jnp.asarray([[3.0, 2.0, 1.0]])
  f = lambda z: score(z, jnp.array([2]), Sampling(top_k=2)).logp[0]
  value, grad = jax.value_and_grad(f)(z_1V)
  assert value == -np.inf
  assert np.isfinite(grad).all()


def sets(seed=1, K=6):
  """Kept sets that these logits would not choose, of 1 to K ids, the target among them."""
  rng = np.random.default_rng(seed)
  ids_BLK = np.full((B, L, K), FILLER, np.int32)
  for row, target in zip(ids_BLK.reshape(-1, K), Y.reshape(-1)):
    others = rng.permutation(np.setdiff1d(np.arange(V), [target]))
    n = rng.integers(1, K + 1)
    row[:n] = rng.permutation([target, *others[: n - 1]])
  return ids_BLK


def replayed(ids_BLK, temperature):
  """logp, entropy and gradients of Σ g · logp over given sets, in closed form in float64."""
  kept = (np.arange(V) == ids_BLK[..., None]).any(-2)
  z = np.where(kept, X.astype('f8') @ W.astype('f8') / temperature, -np.inf)
  p, hot = softmax(z), np.eye(V)[Y]
  dz = G[..., None] * (hot - p) / temperature
  entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)
  return np.log((p * hot).sum(-1)), entropy, dz @ W.T, np.einsum('BLD,BLV->DV', X, dz)


@pytest.mark.parametrize('chunk, temperature', [(1024, 1.0), (5, 0.6)])
def test_contract_03_a_replayed_support_has_the_values_and_gradients_of_the_dense_form(
  chunk, temperature
):
  """Temperature as sampled; top-k and top-p of these logits do not enter."""
  ids_BLK, sampling = sets(), Sampling(temperature, top_k=6, top_p=0.5)

  def weighted(x, w):
    out = logprobs(x, w, Y, sampling, chunk, ids_BLK)
    return jnp.sum(out.logp * G), out

  grads, got = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(X, W)
  for a, b in zip((*got, *grads), replayed(ids_BLK, temperature)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_contract_03_a_replayed_support_on_a_mesh_is_that_of_one_device():
  """Rows over four devices, the vocabulary over two."""
  rows = lambda a: np.concatenate([a, a[:, ::-1]])
  x, y, ids, g = rows(X), rows(Y), rows(sets()), rows(G)
  w = np.pad(W, ((0, 0), (0, 1)))

  def weighted(x, w, y, ids, g):
    out = logprobs(x, w, y, Sampling(0.7, top_k=6), 5, ids)
    return jnp.sum(out.logp * g), out

  f = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
  expected = f(x, w, y, ids, g)
  mesh = meshes.make(Mesh(data=2, fsdp=2, tensor=2))
  with jax.set_mesh(mesh):
    put = lambda a, *spec: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*spec)))
    over = lambda a: put(a, ('data', 'fsdp'))
    made = f(over(x), put(w, None, 'tensor'), over(y), over(ids), over(g))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), made, expected)


@pytest.mark.optimized
def test_rows_stay_on_their_devices():
  """Eight rows on eight devices: none is gathered, each device computes an eighth."""

  def summed(x, w, y):
    return logprobs(x, w, y, chunk=64).logp.sum()

  x, w, y = (
    jax.ShapeDtypeStruct(*of) for of in (((8, 32, 16), 'f4'), ((16, 64), 'f4'), ((8, 32), 'i4'))
  )
  f = jax.jit(jax.grad(summed, (0, 1)))
  alone = f.lower(x, w, y).compile().cost_analysis()['flops']
  mesh = meshes.make(Mesh(data=8))
  put = lambda s, *axes: s.update(sharding=jax.NamedSharding(mesh, jax.P(*axes)))
  with jax.set_mesh(mesh):
    made = f.lower(put(x, 'data'), put(w), put(y, 'data')).compile()
  assert 'all-gather' not in made.as_text()
  assert made.cost_analysis()['flops'] < alone / 8 * 1.2


def test_contract_03_the_policy_gradient_over_a_replayed_support_is_exact():
  """E_{y ~ π_old, S} [A ∇(π_S / π_old)] = ∇ Σ_S π_S A on the vocabulary, after an update.

  The set that the new weights would keep themselves lacks tokens of S: there the sum is another.
  """
  sampling, advantage_V = Sampling(0.7, 6, 0.9), G.reshape(-1)[: V % 14].repeat(4)[:V]
  x_D, moved = X[0, 0], W + 0.6 * np.random.default_rng(5).normal(size=W.shape).astype('f4')
  ids_1K = np.asarray(support(jnp.asarray(x_D @ W)[None], sampling))
  ids_K = ids_1K[ids_1K != FILLER]
  n, x_1KD = len(ids_K), np.broadcast_to(x_D, (1, len(ids_K), D))
  old = logprobs(x_1KD, W, ids_K[None], sampling, 3, np.tile(ids_1K, (1, n, 1))).logp[0]
  np.testing.assert_allclose(np.exp(old).sum(), 1, rtol=1e-6)

  def expected_gain(w, support_BLK):
    logp = logprobs(x_1KD, w, ids_K[None], sampling, 3, support_BLK).logp[0]
    return jnp.sum(jnp.exp(old) * advantage_V[ids_K] * jnp.exp(logp - old))

  z = (x_D.astype('f8') @ moved.astype('f8') / 0.7)[ids_K]
  p, a = softmax(z), advantage_V[ids_K].astype('f8')
  dz = np.zeros(V)
  dz[ids_K] = p * (a - p @ a) / 0.7
  got = jax.grad(expected_gain)(moved, np.tile(ids_1K, (1, n, 1)))
  np.testing.assert_allclose(got, np.outer(x_D, dz), rtol=1e-4, atol=1e-6)
  own = jax.grad(expected_gain)(moved, None)
  assert np.abs(own - np.outer(x_D, dz)).max() > 0.05 * np.abs(dz).max()


@pytest.mark.optimized
@pytest.mark.parametrize('K', [0, 8])
def test_contract_14_logits_of_all_tokens_are_never_made(K):
  tokens, vocab, width, chunk = 8192, 8192, 32, 256
  whole = 4 * tokens * vocab

  def fused(x, w, y, *ids):
    return logprobs(x, w, y, Sampling(), chunk, *ids).logp.sum()

  def naive(x, w, y):
    return jnp.take_along_axis(jax.nn.log_softmax(x @ w), y[..., None], -1).sum()

  def temporaries(f, *more):
    shapes = ((1, tokens, width), jnp.float32), ((width, vocab), jnp.float32)
    args = *(jax.ShapeDtypeStruct(*s) for s in shapes), jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*args, *more).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  ids = (jax.ShapeDtypeStruct((1, tokens, K), jnp.int32),) if K else ()
  assert temporaries(fused, *ids) < whole / 8
  assert temporaries(naive) >= whole


def test_bfloat16_activations_give_fp32_log_probabilities():
  f = functools.partial(logprobs, w_DV=jnp.asarray(W), targets_BL=jnp.asarray(Y))
  got = f(jnp.asarray(X, jnp.bfloat16)).logp
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(1.0)[0], atol=0.1)
