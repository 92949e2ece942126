"""The fused head against log_softmax of whole logits; contract 14: those are never made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.logprob import logprobs, score
from r1jax.kernels.logprob.truncate import Sampling

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


def test_contract_14_logits_of_all_tokens_are_never_made():
  tokens, vocab, width, chunk = 8192, 8192, 32, 256
  whole = 4 * tokens * vocab

  def fused(x, w, y):
    return logprobs(x, w, y, chunk=chunk).logp.sum()

  def naive(x, w, y):
    return jnp.take_along_axis(jax.nn.log_softmax(x @ w), y[..., None], -1).sum()

  def temporaries(f):
    shapes = ((1, tokens, width), jnp.float32), ((width, vocab), jnp.float32)
    args = *(jax.ShapeDtypeStruct(*s) for s in shapes), jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(fused) < whole / 8
  assert temporaries(naive) >= whole


def test_bfloat16_activations_give_fp32_log_probabilities():
  f = functools.partial(logprobs, w_DV=jnp.asarray(W), targets_BL=jnp.asarray(Y))
  got = f(jnp.asarray(X, jnp.bfloat16)).logp
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(1.0)[0], atol=0.1)
