"""The router against a float64 oracle by hand; contract 6; balance in closed form."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import router
from r1jax.model.config import MoE
from r1jax.model.moe import Router

V3 = MoE(8, experts=16, active=4, groups=4, active_groups=2, scale=2.5)
PLAIN = MoE(8, experts=16, active=3)
V2 = MoE(8, 16, 3, groups=4, active_groups=2, score='softmax', group_score='best', gates='raw')
QWEN3 = MoE(8, experts=16, active=3, score='softmax')
D = 6


def oracle(x_D, w_DE, bias_E, cfg, closed=-np.inf):
  """(ids, gates) of one token, as recipe.md says it."""
  z = x_D @ w_DE
  s = 1 / (1 + np.exp(-z)) if cfg.score == 'sigmoid' else np.exp(z) / np.exp(z).sum()
  biased = s + bias_E
  size = cfg.experts // cfg.groups
  best = -2 if cfg.group_score == 'two_best' else -1
  group = [np.sort(biased[g * size : (g + 1) * size])[best:].sum() for g in range(cfg.groups)]
  for g in np.argsort(group)[: cfg.groups - cfg.active_groups]:
    biased[g * size : (g + 1) * size] = closed
  ids = np.argsort(-biased, kind='stable')[: cfg.active]
  gates = s[ids] / s[ids].sum() if cfg.gates == 'normalized' else s[ids]
  return ids, gates * cfg.scale


ROUTE = jax.jit(
  lambda x, w, b, cfg: (
    (s := router.scores(x, w, cfg)),
    (ids := router.select(s, b, cfg)),
    router.gates(s, ids, cfg),
  ),
  static_argnums=3,
)


@pytest.mark.parametrize('cfg', [V3, PLAIN, V2, QWEN3], ids=['v3', 'plain', 'v2', 'qwen3'])
@hypothesis.settings(max_examples=20)
@hypothesis.given(seed=st.integers(0, 10**6), low=st.floats(-3, 1))
def test_experts_and_gates(cfg, seed, low):
  rng = np.random.default_rng(seed)
  x, w = rng.normal(size=(2, 3, D)), rng.normal(size=(D, 16))
  bias = low + rng.normal(size=16)
  out = ROUTE(*(a.astype('f4') for a in (x, w, bias)), cfg)
  _, ids, gates = map(np.asarray, out)
  for at in np.ndindex(2, 3):
    want_ids, want_gates = oracle(x[at], w, bias, cfg)
    np.testing.assert_array_equal(ids[at], want_ids)
    np.testing.assert_allclose(gates[at], want_gates, rtol=1e-5)


def test_contract_06_closed_groups_are_minus_infinity_even_where_open_scores_are_negative():
  cfg = MoE(8, experts=4, active=2, groups=2, active_groups=1)
  x, w = np.zeros((1, 1, D), 'f4'), np.zeros((D, 4), 'f4')
  bias = np.array([-1.5, -1.6, -2.0, -2.1], 'f4')
  _, ids, gates = ROUTE(x, w, bias, cfg)
  np.testing.assert_array_equal(ids[0, 0], [0, 1])
  np.testing.assert_allclose(gates[0, 0], [0.5, 0.5])
  wrong, _ = oracle(x[0, 0], w, bias.copy(), cfg, closed=0.0)
  assert set(wrong) == {2, 3}  # with 0 in place of −∞ the closed group would win


def test_contract_06_gates_never_see_the_bias():
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(1, 4, D)).astype('f4'), rng.normal(size=(D, 16)).astype('f4')
  s, ids, gates = ROUTE(x, w, np.where(np.arange(16) < 3, 9.0, -9.0).astype('f4'), PLAIN)
  np.testing.assert_array_equal(np.sort(ids), np.broadcast_to(np.arange(3), ids.shape))
  chosen = np.take_along_axis(np.asarray(s), np.asarray(ids), -1)
  np.testing.assert_allclose(gates, chosen / chosen.sum(-1, keepdims=True), rtol=1e-6)


def test_contract_06_scores_and_bias_are_fp32_although_activations_are_bfloat16():
  x = jnp.ones((1, 1, D), jnp.bfloat16)
  module = Router(PLAIN)
  params = {'weight': jnp.zeros((D, 16)), 'bias': jnp.zeros(16).at[jnp.array([5, 9, 11])].set(1e-4)}
  s, bias = module.apply({'params': params}, x)
  assert (s.dtype, bias.dtype) == (jnp.float32, jnp.float32)
  # In bfloat16 0.5 + 1e-4 is 0.5, the bias would not count and the first experts would win.
  np.testing.assert_array_equal(np.sort(router.select(s, bias, PLAIN)[0, 0]), [5, 9, 11])


def test_selection_carries_no_gradient_and_the_bias_gets_none():
  rng = np.random.default_rng(1)
  x, w = rng.normal(size=(1, 2, D)).astype('f4'), rng.normal(size=(D, 16)).astype('f4')

  def loss(w, bias):
    s = router.scores(x, w, V3)
    gates = router.gates(s, router.select(s, bias, V3), V3)
    return jnp.sum(gates * jnp.arange(4.0))

  d_w, d_bias = jax.grad(loss, (0, 1))(w, np.zeros(16, 'f4'))
  assert np.abs(d_w).max() > 0
  np.testing.assert_array_equal(d_bias, np.zeros(16))


def test_load_counts_choices_and_leaves_padding_out():
  ids = jnp.array([[[0, 2], [2, 3], [1, 0]]])
  valid = jnp.array([[True, True, False]])
  np.testing.assert_array_equal(router.load(ids, valid, 4), [1, 0, 2, 1])


def balance_by_hand(s_BLE, segments_BL, active):
  """(sum, number of sequences) with one loop a sequence."""
  total, count = 0.0, 0
  for row, seg in zip(s_BLE, segments_BL):
    for k in np.unique(seg[seg > 0]):
      s = row[seg == k]
      hits = np.zeros_like(s)
      np.put_along_axis(hits, np.argsort(-s, -1)[:, :active], 1, -1)
      f = s.shape[1] / (active * len(s)) * hits.sum(0)
      total += (f * (s / s.sum(-1, keepdims=True)).mean(0)).sum()
      count += 1
  return total, count


@hypothesis.settings(max_examples=20)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_balance_of_packed_sequences(seed):
  rng = np.random.default_rng(seed)
  s = rng.uniform(size=(2, 9, 16)).astype('f4')
  segments = np.sort(rng.integers(0, 4, (2, 9)))
  term = router.balance(jnp.asarray(s), jnp.asarray(segments), V3)
  total, count = balance_by_hand(s.astype('f8'), segments, V3.active)
  np.testing.assert_allclose(term.total, total, rtol=1e-5)
  assert term.weight == count


def test_balance_is_one_for_even_load_and_rises_with_imbalance():
  cfg = MoE(8, experts=4, active=1)
  even = jnp.full((1, 4, 4), 0.1) + 0.6 * jnp.eye(4)
  ones = jnp.ones((1, 4), jnp.int32)
  np.testing.assert_allclose(router.balance(even, ones, cfg), (1, 1), rtol=1e-6)
  same = jnp.broadcast_to(even[:, :1], even.shape)  # all tokens like one expert: E · 0.7
  np.testing.assert_allclose(router.balance(same, ones, cfg), (2.8, 1), rtol=1e-6)


def test_padding_has_no_part_in_balance():
  s = jnp.asarray(np.random.default_rng(2).uniform(size=(1, 5, 16)), jnp.float32)
  segments = jnp.array([[1, 1, 2, 0, 0]])
  f = lambda s: router.balance(s, segments, V3).total
  np.testing.assert_allclose(f(s.at[:, 3:].set(0.9)), f(s), rtol=1e-6)
  grad = jax.grad(f)(s)
  np.testing.assert_array_equal(grad[:, 3:], np.zeros((1, 2, 16)))
  assert np.abs(grad[:, :3]).min() > 0
