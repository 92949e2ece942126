"""Patterns: over a batch against loops in float64; over a cache the same as over the batch."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import attend, indexer
from r1jax.model import cache as caches
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Fixed,
  Full,
  Gate,
  Hybrid,
  Indexer,
  KeyScores,
  KeyTokens,
  Layer,
  ModelConfig,
  TopK,
  Union,
  Window,
)
from r1jax.model.keys import Marks
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place as placement

B, T, N, H, W = 2, 22, 2, 4, 3
RNG = np.random.default_rng(0)
Q, KEY, VALUE = (RNG.normal(size=(B, T, N, H)).astype('f4') for _ in 'qkv')
LISTED = RNG.random((B, T)) < 0.5
GATE = RNG.random((B, T, N)).astype('f4')
POSITIONS = np.int32([[*range(15), *range(7)], [*range(18), *[0] * 4]])
SEGMENTS = np.int32([[1] * 15 + [2] * 7, [1] * 18 + [0] * 4])
KEYS = KeyTokens(0.25, first=1)

MIXES = (Union(), Fixed(0.7, 0.3), Gate())


def taken(row, start):
  """The key tokens of the segment that begins at `start`, by the rule."""
  count, found = 0, []
  for t in range(start, T):
    if SEGMENTS[row, t] != SEGMENTS[row, start]:
      break
    if (LISTED[row, t] or t == start) and count < int((t - start + W) * 0.25):
      count, found = count + 1, [*found, t]
  return found


def softmax_over(b, l, n, seen):
  s = np.float64(KEY[b, seen, n]) @ Q[b, l, n] * 0.5
  e = np.exp(s - s.max())
  return e @ VALUE[b, seen, n] / e.sum()


def by_hand(mix):
  o = np.zeros((B, T, N, H))
  for b, l, n in np.ndindex(B, T, N):
    if not SEGMENTS[b, l]:
      continue
    start = l - POSITIONS[b, l]
    near = list(range(max(start, l - W + 1), l + 1))
    far = [t for t in taken(b, start) if t <= l - W]
    match mix:
      case Union():
        o[b, l, n] = softmax_over(b, l, n, near + far)
        continue
      case Fixed(a, c):
        weights = a, c
      case Gate():
        weights = GATE[b, l, n], 1 - GATE[b, l, n]
    weights = weights if far else (1, 0)
    o[b, l, n] = sum(w * softmax_over(b, l, n, s) for w, s in zip(weights, (near, far)) if s)
  return o


@pytest.mark.parametrize('few', [0, attend.FEW], ids=['blocks', 'mask'])
@pytest.mark.parametrize('mix', MIXES)
def test_hybrid_over_packed_rows(mix, few, monkeypatch):
  monkeypatch.setattr(attend, 'FEW', few)
  place = Place(POSITIONS, SEGMENTS, listed_BL=LISTED)
  marked = Marks(LISTED | (POSITIONS == 0), None, GATE)
  got = attend.over_batch(Q, KEY, VALUE, place, Hybrid(W, KEYS, mix), marked, 0.5)
  np.testing.assert_allclose(got, by_hand(mix), rtol=1e-5, atol=1e-6)
  assert (
    sum(len(taken(b, s)) for b, s in ((0, 0), (0, 15), (1, 0))) > 4
  )  # there is something to see


@pytest.mark.parametrize('pattern', [Full(), Window(W)])
def test_long_rows_go_by_blocks_and_give_what_one_mask_gives(pattern, monkeypatch):
  place = Place(POSITIONS, SEGMENTS)
  run = lambda: attend.over_batch(Q, KEY, VALUE, place, pattern, Marks(), 0.5)
  want = run()
  monkeypatch.setattr(attend, 'SHORT', {'*': 0})
  np.testing.assert_allclose(run(), want, rtol=1e-5, atol=1e-6)


def model(pattern):
  attention = [GQA(2, 1, 4, pattern=pattern, std=0.5)]
  if not isinstance(pattern, Blocks):
    attention = [MLA(2, 4, 4, 6, 8, pattern=pattern, std=0.5), *attention]
  layers = tuple(Layer(a, Dense(8)) for a in attention) * 2
  return ModelConfig(16, 8, layers, key_ids=(1, 3, 4, 9, 12), std=0.5, remat='none')


PATTERNS = {
  'union': Hybrid(W, KEYS),
  'fixed, few slots': Hybrid(W, KeyTokens(0.5, slots=2), Fixed()),
  'gate and scores': Hybrid(W, KeyScores(0.4), Gate()),
  'top-k': TopK(5, Indexer(3, 6, 4)),
  'blocks': Blocks(compress=4, stride=2, select=4, selected=3, first=1, local=1, window=W),
}
TOKENS = RNG.integers(0, 16, (B, T)).astype('i4')
WHOLE = np.broadcast_to(np.arange(T, dtype='i4'), (B, T)), np.ones((B, T), 'i4')


@functools.cache
def programs(name):
  """The hidden states of whole sequences, and a step over a cache."""
  cfg = model(PATTERNS[name])
  shapes = placement.templates(None, placement.abstract(Transformer(cfg), Inputs(TOKENS, *WHOLE)))
  draw = np.random.default_rng(1).normal  # the same weights, whichever tests run
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * draw(size=x.shape), x.dtype), shapes)

  @jax.jit
  def step(inputs, cache=None):
    out = Transformer(cfg).apply({'params': params}, inputs, cache)
    return out.x_BLD, out.cache

  return cfg, params, step


TABLE, SLOTS = np.arange(B * 6, dtype='i4').reshape(B, 6), np.int32([2, 0])
CACHES = {
  'dense': (None, None, lambda cfg: caches.empty(cfg, B, T)),
  'pages': (TABLE, None, lambda cfg: jax.tree.map(stale, caches.paged(cfg, B * 6, 4))),
  'int8': (TABLE, None, lambda cfg: jax.tree.map(stale, caches.paged(cfg, B * 6, 4, 'int8'))),
  # Slots that others have left full; the ring is as short as chunks of 8 allow.
  'pinned': (
    None,
    SLOTS,
    lambda cfg: jax.tree.map(stale, caches.paged(cfg, 1, 4, None, 3, W + 7, T)),
  ),
  'pinned, int8': (
    None,
    SLOTS,
    lambda cfg: jax.tree.map(stale, caches.paged(cfg, 1, 4, 'int8', 3, W + 7, T)),
  ),
}


def stale(x):
  """NaN in the arrays, or large numbers; positions that are all known."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.full_like(x, jnp.nan)
  return (
    jnp.full_like(x, 99) if x.dtype == jnp.int8 else jnp.zeros_like(x) + jnp.arange(x.shape[-1])
  )


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    *((name, 'pages') for name in PATTERNS),
    ('top-k', 'dense'),
    ('blocks', 'dense'),
    pytest.param('gate and scores', 'int8', marks=pytest.mark.slow),
    ('union', 'pinned, int8'),
    ('gate and scores', 'pinned'),
    pytest.param('fixed, few slots', 'pinned', marks=pytest.mark.slow),
  ],
)
@hypothesis.settings(max_examples=4)
@hypothesis.given(lengths=st.tuples(*[st.integers(1, 8)] * B))
def test_contract_04_decoding_from_a_cache_equals_the_whole_sequence(name, kind, lengths):
  cfg, _, step = programs(name)
  want_BTD = np.asarray(step(Inputs(TOKENS, *WHOLE))[0])
  table_BT, slots_B, make = CACHES[kind]
  cache = make(cfg)
  at_B, got_BTD = np.zeros(B, 'i4'), np.full(want_BTD.shape, np.nan)
  counts_B, width = np.int32(lengths), 8
  while (at_B < T).any():
    counts_B = np.minimum(counts_B, T - at_B)
    positions_BL = at_B[:, None] + np.arange(width, dtype='i4')
    segments_BL = (positions_BL < (at_B + counts_B)[:, None]).astype('i4')
    tokens_BL = np.take_along_axis(TOKENS, np.minimum(positions_BL, T - 1), 1)
    inputs = Inputs(tokens_BL, positions_BL, segments_BL, (), table_BT, slots_B)
    x_BLD, cache = step(inputs, cache)
    for b, n in enumerate(counts_B):
      got_BTD[b, at_B[b] : at_B[b] + n] = np.asarray(x_BLD)[b, :n]
    at_B, counts_B, width = at_B + counts_B, np.ones(B, 'i4'), 1
  tolerance = 0.1 if 'int8' in kind else 1e-5
  np.testing.assert_allclose(got_BTD, want_BTD, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', PATTERNS)
def test_contract_01_packed_sequences_are_independent(name):
  step = programs(name)[2]
  together = step(Inputs(TOKENS[:1], POSITIONS[:1], SEGMENTS[:1]))[0][0]
  alone = [
    step(Inputs(TOKENS[:1, a:b], *(x[:1, : b - a] for x in WHOLE)))[0][0]
    for a, b in ((0, 15), (15, T))
  ]
  np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', PATTERNS)
def test_every_weight_has_a_gradient_and_none_is_nan(name):
  cfg, params, _ = programs(name)

  def loss(params):
    out = Transformer(cfg).apply({'params': params}, Inputs(TOKENS, POSITIONS, SEGMENTS))
    return jnp.sum(jnp.sin(out.x_BLD) * (SEGMENTS > 0)[..., None]) + out.index.total

  for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(grad).all()
    if not jax.tree_util.keystr(path).endswith("'head']"):
      assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize('name', ['union', 'gate and scores', 'top-k', 'blocks'])
def test_a_mesh_gives_what_one_device_gives(name, monkeypatch):
  cfg, params, step = programs(name)
  inputs = Inputs(TOKENS, POSITIONS, SEGMENTS)
  want = step(inputs)[0]
  for module in (attend, indexer):
    monkeypatch.setattr(module, 'FEW', 0)
  with jax.set_mesh(meshes.make(meshes.Mesh(data=2, fsdp=1, context=2, tensor=2))):
    run = jax.jit(lambda params: Transformer(cfg).apply({'params': params}, inputs).x_BLD)
    np.testing.assert_allclose(run(params), want, rtol=1e-5, atol=1e-5)
