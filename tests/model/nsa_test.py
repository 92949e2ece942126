"""Natively sparse attention against loops in float64: its branches, their mix, the gradient."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import nsa
from r1jax.model.config import GQA, Blocks, Rope
from r1jax.model.nsa import NativelySparseAttention
from r1jax.model.types import Place

PATTERN = Blocks(compress=4, stride=2, select=4, selected=3, first=1, local=1, window=3)
CFG = GQA(4, 2, 6, qk_norm=True, bias=True, pattern=PATTERN, rotary=Rope(50.0, interleaved=False))
B, T, D = 2, 24, 8
SPANS = ((0, 0, 17), (0, 17, 24), (1, 0, 3), (1, 3, 22))  # row, first token, the one after the last
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D))
COTANGENT = RNG.normal(size=(B, T, D))
POSITIONS, SEGMENTS = np.zeros((2, B, T), 'i4')
for number, (b, start, end) in enumerate(SPANS):
  POSITIONS[b, start:end], SEGMENTS[b, start:end] = np.arange(end - start), number + 1
PLACE = Place(POSITIONS, SEGMENTS)


def norm(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + CFG.eps) * scale


def turn(x, positions):
  half = CFG.head // 2
  omega = CFG.rotary.theta ** (-np.arange(half) / half)
  z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.multiply.outer(positions, omega))[
    :, None
  ]
  return np.concatenate([z.real, z.imag], -1)


def softmax(s):
  e = np.exp(s - s.max())
  return e / e.sum()


def phi(x_ZKH, p, name):
  """The summary of a block."""
  place, inner, outer = (p[f'summary_{name}_{n}'] for n in ('bias', 'in', 'out'))
  h = (x_ZKH + place[:, None]).swapaxes(0, 1).reshape(x_ZKH.shape[1], -1) @ inner
  return x_ZKH.mean(0) + h / (1 + np.exp(-h)) @ outer


def best_blocks(p_GC, t):
  """The blocks that a kv group takes, by its heads' probabilities of the summaries."""
  c, own = PATTERN, t // PATTERN.select
  p_1C = np.pad(p_GC.sum(0), (1, t + c.select + c.compress))  # from 1, as the paper counts
  scores = np.zeros(own + 1)
  for j in range(own + 1):
    for m in range(c.select // c.stride):
      for n in range(c.compress // c.stride):
        at = c.select // c.stride * (j + 1) - m - n
        scores[j] += p_1C[at] if at > 0 else 0
  always = {*range(min(c.first, own + 1)), *range(max(own + 1 - c.local, 0), own + 1)}
  others = sorted(set(range(own + 1)) - always, key=lambda j: -scores[j])
  return sorted([*always, *others[: c.selected - len(always)]])


def one_segment(p, x):
  """(y, branches) of one sequence; a branch is [T, N, H]."""
  c, n, scale = PATTERN, len(x), CFG.head**-0.5
  heads = lambda name: np.einsum('LD,DNH->LNH', x, p[name]) + p[f'{name}_bias']
  key = lambda b: turn(norm(heads(f'k_{b}'), p[f'k_{b}_scale']), np.arange(n))
  q_TNH = turn(norm(heads('q'), p['q_scale']), np.arange(n))
  starts = range(0, n - c.compress + 1, c.stride)
  cut = lambda name: [heads(name)[i : i + c.compress] for i in starts]
  sums = [phi(z, p, 'key') for z in cut('k_summary')]
  last = np.array(starts) + c.compress - 1
  ks = turn(norm(np.reshape(sums, (-1, 2, 6)), p['k_summary_scale']), last)
  vs = np.reshape([phi(z, p, 'value') for z in cut('v_summary')], (-1, 2, 6))
  (kb, vb), (kw, vw) = ((key(b), heads(f'v_{b}')) for b in ('select', 'window'))
  parts = np.zeros((3, n, 4, 6))
  for t, kv in np.ndindex(n, 2):
    seen = np.flatnonzero(last <= t)
    p_GC = np.zeros((2, len(seen)))
    for g in range(2):
      if len(seen):
        p_GC[g] = softmax(scale * ks[seen, kv] @ q_TNH[t, 2 * kv + g])
        parts[0, t, 2 * kv + g] = p_GC[g] @ vs[seen, kv]
    chosen = best_blocks(p_GC, t)
    whole = [m for m in range(t + 1) if m // c.select in chosen]
    near = range(max(t - c.window + 1, 0), t + 1)
    for g in (2 * kv, 2 * kv + 1):
      for i, (k, v, at) in enumerate(((kb, vb, whole), (kw, vw, near)), 1):
        parts[i, t, g] = softmax(scale * k[at, kv] @ q_TNH[t, g]) @ v[at, kv]
  gate = 1 / (1 + np.exp(-(np.einsum('LD,DNX->XLN', x, p['gate']) + p['gate_bias'].T[:, None])))
  return np.einsum('XLN,XLNH,NHD->LD', gate, parts, p['out']), parts


def by_hand(p, x_BTD):
  """The same of packed rows; padding gives zeros."""
  y_BTD, parts = np.zeros((B, T, D)), np.zeros((3, B, T, 4, 6))
  for b, start, end in SPANS:
    y_BTD[b, start:end], parts[:, b, start:end] = one_segment(p, x_BTD[b, start:end])
  return y_BTD, parts


@functools.cache
def given():
  """Weights, and the module's output with its gradient by weights and input."""
  module = NativelySparseAttention(CFG)
  init = lambda: nn.meta.unbox(module.init(jax.random.key(0), jnp.float32(X), PLACE, None))
  draw = np.random.default_rng(1).normal
  params = jax.tree.map(
    lambda s: np.float32(0.5 * draw(size=s.shape) + (s.shape == (6,))),
    jax.eval_shape(init)['params'],
  )

  @jax.jit
  def run(params, x_BTD):
    def loss(params, x_BTD):
      y_BTD = module.apply({'params': params}, x_BTD, PLACE, None)[0]
      return jnp.sum(y_BTD * COTANGENT), y_BTD

    return jax.grad(loss, (0, 1), has_aux=True)(params, x_BTD)

  return params, run


@pytest.mark.parametrize('few', [0, nsa.FEW], ids=['blocks', 'mask'])
def test_packed_rows_and_their_gradient(few, monkeypatch):
  monkeypatch.setattr(nsa, 'FEW', few)
  given.cache_clear()
  params, run = given()
  (d_params, d_x), y_BTD = run(params, jnp.float32(X))
  wide = jax.tree.map(np.float64, params)
  np.testing.assert_allclose(y_BTD, by_hand(wide, X)[0], rtol=1e-4, atol=1e-5)
  assert (np.asarray(d_x)[SEGMENTS == 0] == 0).all()
  for seed in range(3):
    draw = np.random.default_rng(seed).normal
    way = jax.tree.map(lambda w, draw=draw: draw(size=w.shape), (wide, X))
    up, down = (np.sum(by_hand(*moved((wide, X), way, h))[0] * COTANGENT) for h in (1e-5, -1e-5))
    got = jax.tree.map(lambda d, v: np.sum(np.float64(d) * v), (d_params, d_x), way)
    np.testing.assert_allclose(sum(jax.tree.leaves(got)), (up - down) / 2e-5, rtol=1e-3)


def moved(x, way, h):
  return jax.tree.map(lambda x, v: x + h * v, x, way)


def test_each_branch(monkeypatch):
  taken = []
  keep = nsa.branches
  monkeypatch.setattr(nsa, 'branches', lambda *told: taken.append(keep(*told)) or taken[-1])
  params, _ = given()

  @jax.jit
  def parts(params, x_BTD):
    NativelySparseAttention(CFG).apply({'params': params}, x_BTD, PLACE, None)
    return jnp.stack(taken[-1])

  want = by_hand(jax.tree.map(np.float64, params), X)[1]
  np.testing.assert_allclose(parts(params, jnp.float32(X)), want, rtol=1e-4, atol=1e-5)
