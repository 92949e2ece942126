"""Pages and rings give what the whole sequence gives, however it is cut and wherever pages lie.

Every cache begins as NaN all over: what nobody wrote must neither be seen nor be changed.
"""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import cache as caches
from r1jax.model.config import GQA, MLA, Dense, Full, Layer, ModelConfig, MoE, Rope, Window, Yarn
from r1jax.model.gqa import GroupedQueryAttention
from r1jax.model.mla import LatentAttention
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place
from r1jax.sharding import place as placement

B, T, L, D = 3, 11, 4, 8
WINDOW, SLOTS = 3, 5
RING = WINDOW + L - 1
LATENT = MLA(2, 4, 4, 6, 8, 5, Rope(scaling=Yarn()), std=0.5)
LOCAL = GQA(4, 2, 6, qk_norm=True, pattern=Window(WINDOW), std=0.5)
GLOBAL = GQA(2, 1, 6, pattern=Full(), std=0.5)
EXPERTS = MoE(6, experts=4, active=2, std=0.5)
CFG = ModelConfig(
  vocab=24,
  embed=D,
  layers=(Layer(LATENT, EXPERTS), Layer(LOCAL, Dense(8)), Layer(GLOBAL, Dense(8))) * 2,
  std=0.5,
  remat='none',
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, CFG.vocab, (B, T)).astype('i4')
X = RNG.normal(size=(B, T, D)).astype('f4')
WHOLE = np.broadcast_to(np.arange(T, dtype='i4'), (B, T)), np.ones((B, T), 'i4')
CUTS = st.lists(st.tuples(*[st.integers(0, L)] * B), max_size=5)


def poisoned(cfg, *args):
  fill = lambda x: jnp.full_like(x, jnp.nan if x.dtype != jnp.int8 else 99)
  return jax.tree.map(fill, caches.paged(cfg, *args))


def tables(order, size, beyond):
  """A page is owned once; each row's table is one wider than needed."""
  need = -(-T // size)
  table_BT = np.full((B, need + 1), beyond, 'i4')
  table_BT[:, :need] = np.reshape(order[: B * need], (B, need))
  return table_BT


def walk(step, cache, x_BT, cuts, start=(0,) * B, width=L):
  """Chunks of each row as `cuts` says, then one by one to the end; y of every position computed.

  A row that has nothing to do is padding, of garbage.
  """
  at, got_BTD = np.array(start), np.full((B, T, D), np.nan, 'f4')
  while (at < T).any():
    cut, cuts = (cuts[0], cuts[1:]) if cuts else ((1,) * B, ())
    counts = np.minimum(cut, T - at)
    positions_BL = at[:, None] + np.arange(width if counts.max() > 1 else 1)
    segments_BL = (positions_BL < (at + counts)[:, None]).astype('i4')
    x_BL = np.take_along_axis(
      x_BT, np.minimum(positions_BL, T - 1).reshape(*positions_BL.shape, *(1,) * (x_BT.ndim - 2)), 1
    )
    y_BLD, cache = step(x_BL, positions_BL.astype('i4'), segments_BL, cache)
    for b, n in enumerate(counts):
      got_BTD[b, at[b] : at[b] + n] = np.asarray(y_BLD)[b, :n]
    at += counts
  return got_BTD, cache


def close(got, want, tolerance=1e-5):
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def untouched(stack, written):
  """NaN there and only there where nothing was written; [n, pages or slots, places, …]."""
  stack = np.asarray(stack)
  nan = np.isnan(stack.reshape(*stack.shape[:3], -1))
  np.testing.assert_array_equal(nan, np.broadcast_to(~written[None, ..., None], nan.shape))


def places(table_BT, pages, size):
  """[pages, size]: what the rows own and have written at the end."""
  written = np.zeros((pages, size), bool)
  for row in table_BT:
    for p in range(T):
      written[row[p // size], p % size] = True
  return written


@functools.cache
def model():
  shapes = placement.templates(None, placement.abstract(Transformer(CFG), Inputs(TOKENS, *WHOLE)))
  params = jax.tree.map(lambda x: jnp.asarray(0.4 * RNG.normal(size=x.shape), x.dtype), shapes)

  @jax.jit
  def run(inputs, cache):
    out = Transformer(CFG).apply({'params': params}, inputs, cache)
    return out.x_BLD, out.cache

  return run


def stepper(table_BT, slots_B=None):
  return lambda x, positions, segments, cache: model()(
    Inputs(x, positions, segments, (), table_BT, slots_B), cache
  )


@pytest.mark.parametrize('ring', [0, RING])
@hypothesis.settings(max_examples=8)
@hypothesis.given(cuts=CUTS, order=st.permutations(range(12)), beyond=st.sampled_from([-1, 12, 99]))
def test_a_model_in_pages_equals_the_whole_sequence(ring, cuts, order, beyond):
  size, pages = 4, 12
  table_BT, slots_B = tables(order, size, beyond), np.array([4, 0, 2], 'i4')
  want_BTD, _ = model()(Inputs(TOKENS, *WHOLE), None)
  cache = poisoned(CFG, pages, size, None, SLOTS, ring)
  got_BTD, cache = walk(stepper(table_BT, slots_B), cache, TOKENS, cuts)
  close(got_BTD, want_BTD)
  slots = np.zeros((SLOTS, RING), bool)
  slots[slots_B] = True
  for layer in cache[0]:
    written = slots if isinstance(layer, caches.Ring) else places(table_BT, pages, size)
    for stack in jax.tree.leaves(layer):
      untouched(stack, written)
  kinds = [type(layer) for layer in cache[0]]
  assert kinds == [caches.Pages, caches.Ring if ring else caches.Pages, caches.Pages]


def test_rows_that_share_a_prefix_read_the_same_pages():
  tokens_BT = TOKENS.copy()
  tokens_BT[1:, :8] = tokens_BT[0, :8]
  table_BT = np.array([[5, 2, 7, -1], [5, 2, 0, -1], [5, 2, 4, -1]], 'i4')
  want_BTD, _ = model()(Inputs(tokens_BT, *WHOLE), None)
  cache = poisoned(CFG, 12, 4, None, SLOTS, 0)
  first = [(4, 0, 0), (4, 0, 0)]
  step = stepper(table_BT)
  positions_BL = np.arange(4, dtype='i4') + np.zeros((B, 1), 'i4')
  only_BL = np.array([[1] * 4] + [[0] * 4] * 2, 'i4')
  for at in range(0, 4 * len(first), 4):
    _, cache = step(tokens_BT[:, at : at + 4], positions_BL + at, only_BL, cache)
  got_BTD, cache = walk(step, cache, tokens_BT, [(1, 3, 2)], start=(8, 8, 8))
  close(got_BTD[:, 8:], np.asarray(want_BTD)[:, 8:])
  for stack in jax.tree.leaves(cache):
    untouched(stack, places(table_BT, 12, 4))


MODULES = {
  'MLA': LatentAttention(LATENT),
  'expanding MLA': LatentAttention(MLA(1, 1, 2, 1, 16, std=0.5)),
  'window': GroupedQueryAttention(LOCAL),
}


@functools.cache
def programs(name):
  """The whole sequence's output, and a step over a cache of two layers: it is the second."""
  module = MODULES[name]
  whole = Place(*WHOLE, np.int32(1))
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), X, whole, None))

  @jax.jit
  def step(x, place, cache):
    y, kept = module.apply(params, x, place, cache)
    return y, kept.cache

  return np.asarray(step(X, whole, None)[0]), step


def attention(name, dtype, size, cuts, order, ring=0):
  """(want, got, cache) of a module; two layers' pages, the second of them in use."""
  want_BTD, step = programs(name)
  cfg = ModelConfig(8, D, (Layer(MODULES[name].cfg, Dense(8)),) * 2)
  cache = poisoned(cfg, len(order), size, dtype, B, ring)[0][0]
  table_BT = tables(order, size, -1)
  place = lambda positions, segments: Place(positions, segments, np.int32(1), table_BT)
  one = lambda x, positions, segments, cache: step(x, place(positions, segments), cache)
  return want_BTD, *walk(one, cache, X, cuts), table_BT


@pytest.mark.parametrize('size', [1, 4, 16])
@pytest.mark.parametrize('name', MODULES)
@hypothesis.settings(max_examples=5)
@hypothesis.given(cuts=CUTS, data=st.data())
def test_page_sizes(name, size, cuts, data):
  order = data.draw(st.permutations(range(B * -(-T // size) + 2)))
  want_BTD, got_BTD, cache, table_BT = attention(name, None, size, cuts, order)
  close(got_BTD, want_BTD)
  for stack in jax.tree.leaves(cache):
    untouched(stack[1:], places(table_BT, len(order), size))
    assert np.isnan(stack[0]).all()  # the other layer's


@pytest.mark.parametrize('ring', [0, RING])
@pytest.mark.parametrize('name', ['MLA', 'window'])
def test_attention_over_int8_is_near(name, ring):
  cuts, order = [(4, 2, 0), (3, 4, 4)], range(12)
  want_BTD, got_BTD, cache, _ = attention(name, 'int8', 4, cuts, order, ring)
  error = np.sqrt(np.mean((got_BTD - want_BTD) ** 2) / np.mean(want_BTD**2))
  assert 1e-4 < error < 0.02
  assert {x.dtype.name for x in jax.tree.leaves(cache)} == {'int8', 'bfloat16'}


def test_a_ring_too_short_for_the_chunk_is_refused():
  with pytest.raises(ValueError, match='a ring of 5 positions under a window of 3 and chunks of 4'):
    attention('window', None, 4, [(4, 4, 4)], range(12), ring=RING - 1)
