"""The K likeliest tokens and chosen logits against whole logits in float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.logprob.distribution import select, top

B, L, D, V, K = 2, 7, 8, 19, 4
RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(B, L, D)).astype('f4'), RNG.normal(size=(D, V)).astype('f4')
IDS = np.stack([RNG.permutation(V)[:K] for _ in range(B * L)]).reshape(B, L, K).astype('i4')
G, H = RNG.normal(size=(B, L, K)), RNG.normal(size=(B, L))


def dense(temperature):
  """Whole tempered logits and their log-sum-exp, in float64."""
  z = X.astype('f8') @ W.astype('f8') / temperature
  return z, np.log(np.exp(z).sum(-1))


@hypothesis.settings(max_examples=12)
@hypothesis.given(
  k=st.integers(1, V), temperature=st.sampled_from([0.5, 1.0, 2.0]), chunk=st.integers(1, 20)
)
def test_top_is_the_head_of_the_sorted_distribution(k, temperature, chunk):
  got = top(X, W, k, temperature, chunk)
  z, lse = dense(temperature)
  want = np.argsort(-z, axis=-1, kind='stable')[..., :k]
  np.testing.assert_array_equal(got.ids_BLK, want)
  logp = np.take_along_axis(z, want, -1) - lse[..., None]
  np.testing.assert_allclose(got.logp_BLK, logp, rtol=1e-5, atol=1e-5)
  if k == V:
    np.testing.assert_allclose(np.exp(got.logp_BLK).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('chunk, temperature', [(1024, 1.0), (5, 1.0), (7, 0.6), (1, 2.0)])
def test_select_and_its_gradient_for_chunks_that_need_not_divide(chunk, temperature):
  def weighted(x, w):
    out = select(x, w, IDS, temperature, chunk)
    return jnp.sum(out.logits_BLK * G) + jnp.sum(out.lse_BL * H), out

  grads, got = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(X, W)
  z, lse = dense(temperature)
  dz = H[..., None] * np.exp(z - lse[..., None])
  np.put_along_axis(dz, IDS, np.take_along_axis(dz, IDS, -1) + G, -1)
  dz /= temperature
  want = (np.take_along_axis(z, IDS, -1), lse, dz @ W.T, np.einsum('BLD,BLV->DV', X, dz))
  for a, b in zip((*got, *grads), want):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_teacher_has_no_gradient():
  total = lambda x, w: top(x, w, K).logp_BLK.sum()
  for g in jax.grad(total, (0, 1))(X, W):
    np.testing.assert_array_equal(g, np.zeros_like(g))


@pytest.mark.optimized
def test_contract_14_logits_of_all_tokens_are_never_made():
  tokens, vocab, width, k = 8192, 8192, 32, 16
  shapes = ((1, tokens, width), 'f4'), ((width, vocab), 'f4'), ((1, tokens, k), 'i4')
  args = [jax.ShapeDtypeStruct(*s) for s in shapes]

  def both(x, w, ids):
    made = select(x, w, ids, chunk=256)
    return (made.logits_BLK - made.lse_BL[..., None]).sum() + top(x, w, k, chunk=256).logp_BLK.sum()

  compiled = jax.jit(jax.grad(both, (0, 1))).lower(*args).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * tokens * vocab / 8


def test_what_no_distribution_has_is_refused():
  with pytest.raises(ValueError, match='k is 20, the vocabulary 19; expected 1 … that'):
    top(X, W, V + 1)
  for f in (lambda: top(X, W, 1, 0.0), lambda: select(X, W, IDS, -1.0)):
    with pytest.raises(ValueError, match='must be > 0'):
      f()
