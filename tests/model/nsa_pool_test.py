"""Decoding with learned blocks by lists gives what copies of the memory and whole rows give."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import cache as caches
from r1jax.model import nsa, nsa_pool, pool
from r1jax.model.config import GQA, Blocks, Dense, Layer, ModelConfig
from r1jax.model.nsa import NativelySparseAttention
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place as placement

B, T, D, SIZE = 4, 24, 8, 4
PATTERN = Blocks(compress=4, stride=2, select=4, selected=3, first=1, local=1, window=5)
pytestmark = pytest.mark.usefixtures('quick_compilation')


def spec(pattern=PATTERN):
  return GQA(4, 2, 6, qk_norm=True, pattern=pattern)


def config(pattern, layers=2):
  return ModelConfig(16, D, (Layer(spec(pattern), Dense(8)),) * layers, remat='none')


@functools.cache
def params():
  module = NativelySparseAttention(spec())
  x, at = jnp.zeros((1, 8, D)), jnp.ones((1, 8), 'i4')
  shapes = placement.templates(None, placement.abstract(module, x, Place(at, at), None))
  draw = np.random.default_rng(1).normal
  return jax.tree.map(lambda s: np.float32(0.5 * draw(size=s.shape)), shapes)


@functools.cache
def program(direct):
  """The module over a cache: decode steps by lists or by copies."""

  @jax.jit
  def step(x_BLD, place, cache=None):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(pool, '_cheaper', lambda *_: direct)
      y_BLD, kept = NativelySparseAttention(spec()).apply({'params': params()}, x_BLD, place, cache)
    return y_BLD, kept.cache

  return step


def stale(x):
  return jnp.full_like(x, 99 if x.dtype == jnp.int8 else jnp.nan)


def decoded(direct, x_BTD, lengths, dtype):
  """Outputs where prompts come in chunks of 5 and the rest token by token; row 3 is padding.

  Row 1 begins with two pages of row 0.
  """
  table_BT = np.random.default_rng(0).permutation(B * T // SIZE).reshape(B, -1).astype('i4')
  table_BT[1, :2] = table_BT[0, :2]
  cache = jax.tree.map(stale, caches.paged(config(PATTERN), B * T // SIZE, SIZE, dtype)[0][0])
  got_BTD, at_B = np.full(x_BTD.shape, np.nan), np.int32([0, 8, 0, 0])
  got_BTD[1, :8] = 0
  ends_B, live_B = np.int32([*lengths, 0]), np.int32([1, 0, 1, 0])
  while at_B[:3].min() < T:
    width = 5 if (at_B < ends_B).any() else 1
    most_B = np.where(at_B < ends_B, ends_B, T) if width == 5 else T
    live_B[1] = at_B[0] >= 8
    counts_B = np.minimum(width, most_B - at_B) * live_B * (at_B < (ends_B if width == 5 else T))
    at_BL = at_B[:, None] + np.arange(width, dtype='i4')
    place = Place(at_BL, np.int32(at_BL < (at_B + counts_B)[:, None]), np.int32(1), table_BT)
    x_BLD = np.take_along_axis(x_BTD, np.minimum(at_BL, T - 1)[..., None], 1)
    y_BLD, cache = program(direct)(x_BLD, place, cache)
    for b, n in enumerate(counts_B):
      got_BTD[b, at_B[b] : at_B[b] + n] = np.asarray(y_BLD)[b, :n]
    assert not np.asarray(y_BLD)[3].any() if width == 1 else True
    at_B = at_B + counts_B
  return got_BTD[:3]
