"""Latent attention: both executions of one parameter set, against numpy and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import presets
from r1jax.model.config import MLA, Rope
from r1jax.model.mla import LatentAttention, Query, absorbed, absorbed_is_cheaper, expanded
from r1jax.model.types import Kept, Place

B, L, M, N, H, P, R, V, D = 2, 3, 5, 4, 6, 4, 8, 7, 10
RNG = np.random.default_rng(0)
QUERY = Query(RNG.normal(size=(B, L, N, H)), RNG.normal(size=(B, L, N, P)))
KV = RNG.normal(size=(B, M, R + P))
K_UP, V_UP = RNG.normal(size=(R, N, H)), RNG.normal(size=(R, N, V))
MASK = RNG.random((B, L, M)) < 0.7
MASK[1, 0] = False


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('float64', 1e-12)])
def test_expanded_equals_absorbed(dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    q, kv, k_up, v_up = jax.tree.map(lambda a: jnp.asarray(a, dtype), (QUERY, KV, K_UP, V_UP))

    def both(execution):
      f = lambda q, kv, k_up, v_up: execution(q, kv, MASK, k_up, v_up, 0.2)
      y, back = jax.vjp(f, q, kv, k_up, v_up)
      return y, *back(jnp.cos(jnp.arange(y.size, dtype=dtype)).reshape(y.shape))

    a, b = jax.jit(lambda: (both(expanded), both(absorbed)))()
    assert a[0].dtype == dtype
    assert (a[0][1, 0] == 0).all()
    assert (b[0][1, 0] == 0).all()
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=10 * tolerance)
    jax.tree.map(close, a, b)


def test_as_many_queries_are_absorbed_as_take_fewer_flops():
  v3 = presets.deepseek_v3().layers[0].attention
  assert absorbed_is_cheaper(v3, 157, 1 << 20)
  assert not absorbed_is_cheaper(v3, 158, 1 << 20)
  assert absorbed_is_cheaper(v3, 8, 64)
  assert not absorbed_is_cheaper(v3, 64, 64)
  wide = MLA(2, nope=4, rope=2, value=4, kv_latent=2)
  assert absorbed_is_cheaper(wide, 1 << 20, 1 << 20)
  assert not absorbed_is_cheaper(MLA(1, 1, 2, 1, 16), 4, 16)
  assert absorbed_is_cheaper(MLA(2, 4, 4, 6, 8), 4, 16)


def by_hand(p, x, cfg, positions):
  """One sequence in float64, with rotation as multiplication of complex pairs."""

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.eps) * scale

  def turn(x):
    omega = cfg.rotary.theta ** (-np.arange(0, cfg.rope, 2) / cfg.rope)
    angle = (positions[:, None] * omega).reshape(len(x), *(1,) * (x.ndim - 2), -1)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([z.real, z.imag], -1).reshape(x.shape)

  c_q = norm(x @ p['q_down'], p['q_scale']) if cfg.q_latent else x
  q = np.einsum('LR,RNH->LNH', c_q, p['q_up'])
  down = x @ p['kv_down']
  c_kv, k_rope = norm(down[:, : cfg.kv_latent], p['kv_scale']), turn(down[:, cfg.kv_latent :])
  k = np.einsum('MR,RNH->MNH', c_kv, p['k_up'])
  s = np.einsum('LNH,MNH->NLM', q[..., : cfg.nope], k)
  s = (s + np.einsum('LNP,MP->NLM', turn(q[..., cfg.nope :]), k_rope)) / np.sqrt(
    cfg.nope + cfg.rope
  )
  s = np.where(np.tril(np.ones((len(x), len(x)))), s, -np.inf)
  e = np.exp(s - s.max(-1, keepdims=True))
  v = np.einsum('MR,RNV->MNV', c_kv, p['v_up'])
  o = np.einsum('NLM,MNV->LNV', e / e.sum(-1, keepdims=True), v)
  return np.einsum('LNV,NVD->LD', o, p['out'])


@pytest.mark.parametrize('q_latent', [None, 5])
def test_the_module_against_numpy(q_latent):
  cfg = MLA(N, H, P, V, R, q_latent, Rope(theta=50.0), std=0.5)
  x = RNG.normal(size=(1, L, D))
  positions = np.arange(L)
  place = Place(jnp.asarray(positions[None]), jnp.ones((1, L), jnp.int32))
  module, x32 = LatentAttention(cfg), jnp.asarray(x, jnp.float32)
  params = jax.tree.map(
    lambda box: jnp.asarray(RNG.normal(size=box.unbox().shape), jnp.float32),
    jax.eval_shape(module.init, jax.random.key(0), x32, place, None)['params'],
    is_leaf=lambda box: hasattr(box, 'unbox'),
  )
  assert ('q_down' in params) == (q_latent is not None)
  y, kept = jax.jit(module.apply)({'params': params}, x32, place, None)
  want = by_hand(jax.tree.map(lambda a: np.asarray(a, 'f8'), params), x[0], cfg, positions)
  assert kept == Kept()
  np.testing.assert_allclose(y[0], want, rtol=1e-4, atol=1e-4)
