"""Prefill and decode over a cache give what the whole sequence gives, for both attentions.

Prompts of different lengths in one batch, right-padded as the engine does it; every position.
"""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.cache import KVCache, LatentCache
from r1jax.model.config import GQA, MLA, Rope, Yarn
from r1jax.model.gqa import GroupedQueryAttention
from r1jax.model.mla import LatentAttention
from r1jax.model.types import Place

B, P, T, D = 3, 4, 7, 8
MODULES = {
  'MLA': LatentAttention(MLA(2, 4, 4, 6, 8, 5, Rope(scaling=Yarn()), std=0.5)),
  'GQA': GroupedQueryAttention(GQA(4, 2, 6, qk_norm=True, bias=True, std=0.5)),
  'one kv head': GroupedQueryAttention(GQA(4, 1, 6, std=0.5)),
}
X = np.random.default_rng(0).normal(size=(B, T, D)).astype('f4')
ALL = Place(np.broadcast_to(np.arange(T), (B, T)), np.ones((B, T), 'i4'), np.int32(1))


@functools.cache
def programs(name):
  """The whole sequence's output, and a step over a cache of two layers: it is the second."""
  module = MODULES[name]
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), X, ALL, None))

  @jax.jit
  def step(x, place, cache):
    y, kept = module.apply(params, x, place, cache)
    return y, kept.cache

  return step(X, ALL, None)[0], step


def empty(cfg):
  match cfg:
    case MLA():
      return LatentCache(jnp.zeros((2, B, T, cfg.kv_latent + cfg.rope)))
    case GQA():
      return KVCache(*(jnp.zeros((2, B, T, cfg.kv_heads, cfg.head)) for _ in 'kv'))


@pytest.mark.parametrize('name', MODULES)
@hypothesis.settings(max_examples=15)
@hypothesis.given(lengths=st.tuples(*[st.integers(1, P)] * B))
def test_step_by_step_equals_the_whole_sequence(name, lengths):
  want_BTD, step = programs(name)
  lengths_B = np.array(lengths)
  got_BTD = np.full_like(X, np.nan)
  positions_BP = np.broadcast_to(np.arange(P), (B, P))
  segments_BP = (positions_BP < lengths_B[:, None]).astype('i4')
  place = Place(positions_BP, segments_BP, np.int32(1))
  garbage_BPD = np.where(segments_BP[..., None] > 0, X[:, :P], 99).astype('f4')
  y_BPD, cache = step(garbage_BPD, place, empty(MODULES[name].cfg))
  y_BPD = np.asarray(y_BPD)
  assert (y_BPD[segments_BP == 0] == 0).all()  # padding sees nothing: zeros, not NaN
  for b, n in enumerate(lengths):
    got_BTD[b, :n] = y_BPD[b, :n]
  for t in range(T - min(lengths)):
    at_B = np.minimum(lengths_B + t, T - 1)
    live_B = lengths_B + t < T
    place = Place(at_B[:, None], live_B[:, None].astype('i4'), np.int32(1))
    y_B1D, cache = step(X[np.arange(B), at_B][:, None], place, cache)
    for b in np.flatnonzero(live_B):
      got_BTD[b, at_B[b]] = np.asarray(y_B1D)[b, 0]
  np.testing.assert_allclose(got_BTD, want_BTD, rtol=1e-5, atol=1e-5)
  for leaf in map(np.asarray, jax.tree.leaves(cache)):
    np.testing.assert_array_equal(leaf[0], np.zeros_like(leaf[0]))  # the other layer's part
