"""Attention against loops in numpy; nothing visible gives zeros, no NaN, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention import attention, latent_attention, reference

B, L, M, N, K, H, V = 2, 3, 5, 4, 2, 6, 3
RNG = np.random.default_rng(0)
Q, KEY, VALUE = (RNG.normal(size=s) for s in ((B, L, N, H), (B, M, K, H), (B, M, K, V)))
MASK = RNG.random((B, L, M)) < 0.6
MASK[0, 1] = False
SCALE = 0.3


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def oracle(q, k, v, mask):
  """One query and head at a time."""
  out = np.zeros((B, L, N, v.shape[-1]))
  for b, l, n in np.ndindex(B, L, N):
    seen, kv = mask[b, l], n // (N // k.shape[2])
    if seen.any():
      e = np.exp(SCALE * k[b, seen, kv] @ q[b, l, n])
      out[b, l, n] = e @ v[b, seen, kv] / e.sum()
  return out


def test_grouped_heads_and_unequal_widths():
  got = attention(Q, KEY, VALUE, MASK, SCALE)
  np.testing.assert_allclose(got, oracle(Q, KEY, VALUE, MASK), rtol=1e-12, atol=1e-14)
  assert (got[0, 1] == 0).all()


def test_shared_memory_is_one_head_that_is_key_and_value():
  got = latent_attention(Q, KEY[:, :, 0], MASK, SCALE)
  np.testing.assert_allclose(got, oracle(Q, KEY[:, :, :1], KEY[:, :, :1], MASK), rtol=1e-12)
  assert (got[0, 1] == 0).all()


@pytest.mark.parametrize('size', [0.0, 1.0, 1e3])
def test_a_row_that_sees_nothing_has_zero_gradient(size):
  def loss(s_LM):
    return size * jnp.sum(reference.masked_softmax(s_LM, MASK[0]) * VALUE[0, :, 0, 0])

  for grad in (jax.grad(loss), jax.jit(jax.grad(loss))):
    d_LM = grad(jnp.asarray(Q[0, :, 0, :M], jnp.float32))
    assert np.isfinite(d_LM).all()
    assert (d_LM[~MASK[0]] == 0).all()


def test_scores_and_softmax_are_fp32_in_bfloat16():
  array = lambda *x: jnp.asarray(x, jnp.bfloat16).reshape(1, -1, 1, 1)
  k, v = array(15, 15.0625), array(0, 1)  # scores 300 and 301.25: in bfloat16 300 and 302
  got = attention(array(20), k, v, jnp.ones((1, 1, 2), bool), 1.0)
  np.testing.assert_allclose(got.astype(jnp.float32).item(), 1 / (1 + np.exp(-1.25)), rtol=4e-3)


def test_an_unknown_implementation_is_refused():
  for op, arrays in ((attention, (Q, KEY, VALUE)), (latent_attention, (Q, KEY[:, :, 0]))):
    with pytest.raises(NotImplementedError, match='known: xla'):
      op(*arrays, MASK, SCALE, implementation='mosaic')
