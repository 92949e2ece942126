"""The indexer by loops in float64; what is chosen is all that is attended to; who learns what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention.lists import Tokens
from r1jax.model import indexer
from r1jax.model.config import GQA, MLA, Dense, Full, Indexer, Layer, ModelConfig, TopK, Watched
from r1jax.model.indexer import Attended, LightningIndexer, Marks
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place
from r1jax.sharding import place as placement

B, L, J, I, KEYS = 2, 13, 3, 6, 4
RNG = np.random.default_rng(1)
POSITIONS = np.int32([[*range(8), *range(5)], [*range(10), 0, 0, 0]])
SEGMENTS = np.int32([[1] * 8 + [2] * 5, [1] * 10 + [0] * 3])
PLACE = Place(POSITIONS, SEGMENTS)
PATTERN = TopK(KEYS, Indexer(J, I, 4))


def turned(x, position, theta=10_000.0):
  """The first four numbers rotated in halves, (0, 2) and (1, 3)."""
  y = np.array(x)
  for i in range(2):
    angle = position * theta ** (-2 * i / 4)
    a, b = x[i], x[i + 2]
    y[i], y[i + 2] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
  return y


def test_queries_keys_and_weights_by_loops():
  x_BLD, q_in_BLR = RNG.normal(size=(B, L, 8)), RNG.normal(size=(B, L, 5))
  module = LightningIndexer(MLA(2, 4, 4, 6, 8, 5, pattern=PATTERN, std=0.5))
  shapes = placement.templates(None, placement.abstract(module, x_BLD, q_in_BLR, PLACE))
  params = jax.tree.map(lambda s: RNG.normal(size=s.shape), shapes)
  got = module.apply({'params': params}, *(x.astype('f4') for x in (x_BLD, q_in_BLR)), PLACE)
  p = params
  for b, l in np.ndindex(B, L):
    for j in range(J):
      want = turned(q_in_BLR[b, l] @ p['q'][:, j], POSITIONS[b, l])
      np.testing.assert_allclose(got.q_BLJI[b, l, j], want, rtol=1e-5, atol=1e-5)
    k = x_BLD[b, l] @ p['k']
    k = (k - k.mean()) / np.sqrt(k.var() + 1e-6) * p['k_scale'] + p['k_bias']
    np.testing.assert_allclose(got.k_BLI[b, l], turned(k, POSITIONS[b, l]), rtol=1e-5, atol=1e-5)
    want = x_BLD[b, l] @ p['weight'] / np.sqrt(J * I)
    np.testing.assert_allclose(got.w_BLJ[b, l], want, rtol=1e-5, atol=1e-5)


def arrays(heads, kv, width, value):
  make = lambda *shape: RNG.normal(size=shape).astype('f4')
  q, k = make(B, L, heads, width), make(B, L, kv, width)
  marks = Marks(make(B, L, J, I), make(B, L, I), make(B, L, J))
  return q, k, make(B, L, kv, value), marks


def best(marks, b, l):
  """Places of the best keys of a query, by loops."""
  start = l - POSITIONS[b, l]
  dot = lambda s: np.maximum(np.float64(marks.q_BLJI[b, l]) @ marks.k_BLI[b, s], 0)
  scores = {s: marks.w_BLJ[b, l] @ dot(s) for s in range(start, l + 1)}
  return sorted(sorted(scores, key=scores.get, reverse=True)[:KEYS])


@pytest.mark.parametrize('few', [0, indexer.FEW], ids=['gathered', 'mask'])
@pytest.mark.parametrize('latent', [False, True])
def test_attention_over_the_best_keys_by_loops(few, latent, monkeypatch):
  monkeypatch.setattr(indexer, 'FEW', few)
  q, k, v, marks = arrays(4, 1 if latent else 2, 6, 5)
  v = k[..., :5] if latent else v
  here = Tokens(np.broadcast_to(np.arange(L, dtype='i4'), (B, L)), SEGMENTS)
  a = Attended(q, k, None if latent else v, 5, 0.5, here, here)

  def masked(mask_BLM):
    s = 0.5 * np.einsum('BLNH,BMNH->BNLM', q, np.repeat(k, 4 // k.shape[2], 2))
    s = jnp.where(mask_BLM[:, None], s, -jnp.inf)
    p = jnp.where(mask_BLM[:, None], jax.nn.softmax(s), 0)
    return jnp.einsum('BNLM,BMNV->BLNV', p, np.repeat(v, 4 // k.shape[2], 2))

  o, (_, chosen, term) = indexer.over_batch(a, masked, marks, PLACE, PATTERN, None)
  total = 0.0
  for b, l in np.ndindex(B, L):
    if not SEGMENTS[b, l]:
      assert not chosen[b, l].any()
      continue
    at, start = best(marks, b, l), l - POSITIONS[b, l]
    assert sorted(np.asarray(chosen[b, l])[chosen[b, l] > 0]) == [s - start + 1 for s in at]
    mean = np.zeros(len(at))
    for n in range(4):
      s = 0.5 * np.float64(k[b, at, n * k.shape[2] // 4]) @ q[b, l, n]
      p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
      want = p @ v[b, at, n * k.shape[2] // 4]
      np.testing.assert_allclose(o[b, l, n], want, rtol=1e-5, atol=1e-5)
      mean += p / 4
    dots = np.maximum(np.float64(marks.q_BLJI[b, l]) @ marks.k_BLI[b, at].T, 0)
    scores = marks.w_BLJ[b, l] @ dots
    log = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
    total += mean @ (np.log(mean) - log)
  np.testing.assert_allclose(term.total, total, rtol=1e-5)
  assert term.weight == (SEGMENTS > 0).sum()
  marks = marks._replace(w_BLJ=-marks.w_BLJ)
  replayed = indexer.over_batch(a, masked, marks, PLACE, PATTERN, chosen)
  np.testing.assert_array_equal(replayed[1].keys_BLT, chosen)
  np.testing.assert_allclose(replayed[0], o, rtol=1e-6)


def model(pattern):
  layers = (
    Layer(MLA(2, 4, 4, 6, 8, 5, pattern=pattern, std=0.5), Dense(8)),
    Layer(GQA(2, 1, 4, pattern=pattern, std=0.5), Dense(8)),
  )
  return ModelConfig(16, 8, layers, std=0.5, remat='none')


INPUTS = Inputs(RNG.integers(0, 16, (B, L)).astype('i4'), POSITIONS, SEGMENTS)


def weights(cfg):
  shapes = placement.templates(None, placement.abstract(Transformer(cfg), INPUTS))
  return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape) / 2, x.dtype), shapes)


def without_indexers(params):
  kept = {k: v for k, v in params.items() if k != 'indexer'}
  return {k: without_indexers(v) if isinstance(v, dict) else v for k, v in kept.items()}


def test_with_room_for_all_keys_it_is_full_attention():
  enough = dataclasses.replace(PATTERN, keys=L)
  params = weights(model(enough))
  run = lambda pattern, p: Transformer(model(pattern)).apply({'params': p}, INPUTS).x_BLD
  want = run(Full(), without_indexers(params))
  for pattern in (enough, Watched(PATTERN.indexer)):
    np.testing.assert_allclose(run(pattern, params), want, rtol=1e-5, atol=1e-5)
  assert np.abs(run(PATTERN, params) - want)[SEGMENTS > 0].max() > 0.01


@pytest.mark.parametrize('pattern', [PATTERN, Watched(PATTERN.indexer)])
def test_each_loss_moves_its_own_weights(pattern):
  cfg = model(pattern)
  params = weights(cfg)

  def terms(params):
    out = Transformer(cfg).apply({'params': params}, INPUTS)
    return jnp.sum(jnp.sin(out.x_BLD)), out.index.total

  of_model, of_indexers = (
    jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(lambda p, i=i: terms(p)[i]))(params))
    for i in range(2)
  )
  for (path, one), (_, other) in zip(of_model, of_indexers):
    name = jax.tree_util.keystr(path)
    mine, foreign = (other, one) if 'indexer' in name else (one, other)
    assert not np.asarray(foreign).any(), name
    assert np.abs(mine).max() > 0 or "['head']" in name, name
