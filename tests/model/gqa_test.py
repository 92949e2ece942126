"""Grouped-query attention against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.config import GQA, Rope
from r1jax.model.gqa import GroupedQueryAttention
from r1jax.model.types import Kept, Place

L, D = 4, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, L, D))
PLACE = Place(jnp.arange(L)[None], jnp.ones((1, L), jnp.int32))


def by_hand(p, x, cfg):
  """One sequence; pairs are (i, i + H/2)."""

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.eps) * scale

  def turn(x):
    half = cfg.head // 2
    omega = cfg.rotary.theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.arange(L)[:, None, None] * omega)
    return np.concatenate([z.real, z.imag], -1)

  q, k, v = (np.einsum('LD,DNH->LNH', x, p[n]) for n in 'qkv')
  if cfg.bias:
    q, k, v = q + p['q_bias'], k + p['k_bias'], v + p['v_bias']
  if cfg.qk_norm:
    q, k = norm(q, p['q_scale']), norm(k, p['k_scale'])
  k, v = (np.repeat(a, cfg.heads // cfg.kv_heads, 1) for a in (turn(k), v))
  s = np.einsum('LNH,MNH->NLM', turn(q), k) / np.sqrt(cfg.head)
  e = np.exp(np.where(np.tril(np.ones((L, L))), s, -np.inf))
  o = np.einsum('NLM,MNH->LNH', e / e.sum(-1, keepdims=True), v)
  return np.einsum('LNH,NHD->LD', o, p['out'])


@pytest.mark.parametrize(
  'cfg',
  [
    GQA(4, 2, 6, rotary=Rope(50.0, interleaved=False)),
    GQA(4, 4, 6, bias=True),
    GQA(4, 1, 6, qk_norm=True),
  ],
  ids=['grouped', 'bias', 'qk_norm'],
)
def test_the_module_against_numpy(cfg):
  module, x = GroupedQueryAttention(cfg), jnp.asarray(X, jnp.float32)
  params = jax.tree.map(
    lambda box: jnp.asarray(RNG.normal(size=box.unbox().shape), jnp.float32),
    jax.eval_shape(module.init, jax.random.key(0), x, PLACE, None)['params'],
    is_leaf=lambda box: hasattr(box, 'unbox'),
  )
  y, kept = jax.jit(module.apply)({'params': params}, x, PLACE, None)
  want = by_hand(jax.tree.map(lambda a: np.asarray(a, 'f8'), params), X[0], cfg)
  assert kept == Kept()
  np.testing.assert_allclose(y[0], want, rtol=1e-4, atol=1e-4)


def test_a_query_with_nothing_visible_gives_zeros():
  module, x = GroupedQueryAttention(GQA(2, 1, 4)), jnp.asarray(X, jnp.float32)
  place = PLACE._replace(segments_BL=jnp.array([[1, 1, 0, 0]]))

  @jax.jit
  def both(key):
    params = module.init(key, x, place, None)
    y, back = jax.vjp(lambda x: module.apply(params, x, place, None)[0], x)
    return y, back(jnp.full_like(y, 1e3))[0]

  y, d_x = both(jax.random.key(0))
  np.testing.assert_array_equal(y[0, 2:], np.zeros((2, D)))
  assert np.isfinite(d_x).all()
  np.testing.assert_array_equal(d_x[0, 2:], np.zeros((2, D)))
