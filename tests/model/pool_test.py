"""One query a row over the pool itself gives what the gathered memory under a mask gives."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention import attention, latent_attention
from r1jax.model import cache as caches
from r1jax.model import pool
from r1jax.model.attend import over_memory
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Fixed,
  Full,
  Gate,
  Hybrid,
  KeyScores,
  KeyTokens,
  Layer,
  ModelConfig,
  Window,
)
from r1jax.model.keys import Marks
from r1jax.model.types import Place
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place as placement

B, M, N, SLOTS, RING, SCALE = 4, 24, 4, 8, 12, 0.3
W = 5
LATENT = functools.partial(MLA, N, 4, 4, 6, 8)
HEADS = functools.partial(GQA, N, 2, 6)
UNION = Hybrid(W, KeyTokens(0.4))


def config(spec):
  return ModelConfig(8, 8, (Layer(spec, Dense(8)),) * 2)


def filled(rng, spec, dtype, size, ring):
  """A pool with something at every place; a third of the tokens are candidates."""
  made = jax.eval_shape(
    lambda: caches.paged(config(spec), B * M // size, size, dtype, SLOTS, ring, M)[0][0]
  )

  def one(stack):
    int8 = isinstance(stack, caches.Int8)
    shape = stack.values.shape if int8 else stack.shape
    if not int8 and stack.dtype == jnp.int32:  # positions of pins, some of them
      at = np.sort(rng.permuted(np.tile(np.arange(M), (*shape[:2], 1)), axis=-1)[..., : shape[2]])
      return jnp.where(np.arange(shape[2]) < rng.integers(0, shape[2] + 1), at, caches.NONE)
    x = rng.random(shape) < 1 / 3 if shape[-1] == 1 else rng.normal(size=shape)
    x = jnp.asarray(x, jnp.float32)
    return caches.quantize(x) if int8 else x.astype(stack.dtype)

  return jax.tree.map(one, made, is_leaf=lambda x: isinstance(x, caches.Int8))


def rows(rng, newest, size):
  """Where the rows stand, −1 is padding; pages lie anywhere, tables end with the text."""
  table_BT = rng.permutation(B * M // size).reshape(B, -1)
  newest_B1 = np.int32(newest)[:, None]
  table_BT = np.where(np.arange(M // size) <= newest_B1 // size, table_BT, -1)
  slots_B = rng.permutation(SLOTS)[:B]
  live_B1 = np.int32(newest_B1 >= 0)
  at = np.maximum(newest_B1, 0), live_B1, np.int32(1), np.int32(table_BT), np.int32(slots_B)
  return Place(*at)


def query(rng, spec):
  width = spec.kv_latent + spec.rope if isinstance(spec, MLA) else spec.head
  gate = rng.random((B, 1, N)).astype('f4')
  return rng.normal(size=(B, 1, N, width)).astype('f4'), Marks(gate_BLN=gate)


def direct(spec, q, cache, place, marked):
  width = spec.kv_latent if isinstance(spec, MLA) else None
  return pool.over_pool(q, cache, place, spec.pattern, marked, SCALE, width)


def gathered(spec, q, cache, place, marked):
  """The memory as a copy, under a mask."""
  some = lambda *shape: jnp.zeros((B, 1, *shape), q.dtype)
  candidate = some(1) if isinstance(spec.pattern, Hybrid) else None
  if isinstance(spec, MLA):
    held = caches.look(cache, place, caches.LatentCache(some(q.shape[-1]), candidate))
    attend = lambda mask: latent_attention(q, held.memory[0], mask, SCALE)[..., : spec.kv_latent]
  else:
    like = [some(spec.kv_heads, spec.head) for _ in 'kv']
    held = caches.look(cache, place, caches.KVCache(*like, candidate))
    attend = lambda mask: attention(q, *held.memory[:2], mask, SCALE)
  return over_memory(attend, place, held, held.memory[0].shape[1], spec.pattern, marked)


CASES = {
  'full, MLA': (LATENT(), None, 4, 0),
  'full, MLA, int8': (LATENT(), 'int8', 8, 0),
  'full, GQA, bf16': (HEADS(), 'bfloat16', 4, 0),
  'window, MLA': (LATENT(pattern=Window(W)), None, 1, 0),
  'window, GQA, int8': (HEADS(pattern=Window(W)), 'int8', 4, 0),
  'window, MLA, ring, int8': (LATENT(pattern=Window(W)), 'int8', 4, RING),
  'window, GQA, ring of 80': (HEADS(pattern=Window(W)), None, 4, 80),
  'union, MLA, int8': (LATENT(pattern=UNION), 'int8', 4, 0),
  'union, GQA': (HEADS(pattern=UNION), None, 8, 0),
  'gate, GQA, bf16': (HEADS(pattern=Hybrid(W, KeyScores(0.4), Gate())), 'bfloat16', 4, 0),
  'fixed, MLA, few slots': (LATENT(pattern=Hybrid(W, KeyTokens(0.5, 4, 3), Fixed())), None, 4, 0),
  'union, MLA, pinned': (LATENT(pattern=UNION), None, 4, RING),
  'gate, GQA, pinned, int8': (HEADS(pattern=Hybrid(W, KeyScores(0.4), Gate())), 'int8', 8, RING),
}


@functools.cache
def both(name):
  return tuple(jax.jit(functools.partial(f, CASES[name][0])) for f in (direct, gathered))


@pytest.mark.parametrize('name', CASES)
@hypothesis.settings(max_examples=6)
@hypothesis.given(newest=st.tuples(*[st.integers(-1, M - 1)] * B), seed=st.integers(0, 99))
def test_pool_and_copy_give_the_same_numbers(name, newest, seed):
  spec, dtype, size, ring = CASES[name]
  rng = np.random.default_rng(seed)
  q, marked = query(rng, spec)
  args = q, filled(rng, spec, dtype, size, ring), rows(rng, newest, size), marked
  got, want = (run(*args) for run in both(name))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert not np.asarray(got)[np.int32(newest) < 0].any()


def test_in_bf16_throughout():
  spec = HEADS(pattern=UNION)
  rng = np.random.default_rng(0)
  q, marked = query(rng, spec)
  args = filled(rng, spec, 'bfloat16', 4, 0), rows(rng, (23, 0, 9, 17), 4), marked
  run = jax.jit(functools.partial(direct, spec))
  got, want = run(q.astype(jnp.bfloat16), *args), run(q, *args)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(got), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('places, size', [(24, 24), (80, 40), (192, 64), (101, 101), (1, 1)])
def test_pages_of_slots(places, size):
  assert pool.page_of(places) == size


PAGES, GROUPED, LEARNED, SLOT = (
  jax.eval_shape(
    lambda spec=spec, ring=ring: caches.paged(config(spec), 8, 16, None, 8, ring)[0][0]
  )
  for spec, ring in (
    (LATENT(), 0),
    (HEADS(), 0),
    (HEADS(pattern=Blocks()), 0),
    (HEADS(pattern=Window(64)), 128),
  )
)
DENSE = caches.Blocked(*[caches.KVCache(None, None)] * 4)


@pytest.mark.parametrize('cache, queries, pages, pattern, platform, want', [
  (GROUPED, 2, 4096, Window(64), 'gpu', False),
  (GROUPED, 1, 1, Full(), 'gpu', True),
  (PAGES, 1, 1, Hybrid(64), 'tpu', True),
  (GROUPED, 1, 64, Full(), 'cpu', False),
  (GROUPED, 1, 65, Full(), 'cpu', True),
  (PAGES, 1, 65, Full(), 'cpu', False),
  (PAGES, 1, 10, Window(64), 'cpu', True),
  (PAGES, 1, 9, Window(64), 'cpu', False),
  (PAGES, 1, 13, Hybrid(64, KeyTokens(0.1)), 'cpu', True),
  (PAGES, 1, 12, Hybrid(64, KeyTokens(0.1)), 'cpu', False),
  (PAGES, 1, 4096, Hybrid(64, KeyTokens(0.5)), 'cpu', False),
  (LEARNED, 1, 17, Blocks(), 'cpu', True),
  (LEARNED, 1, 16, Blocks(), 'cpu', False),
  (LEARNED, 2, 4096, Blocks(), 'cpu', False),
  (LEARNED, 1, 1, Blocks(), 'gpu', True),
  (DENSE, 1, 4096, Blocks(), 'gpu', False),
  (SLOT, 1, 1, Window(64), 'cpu', True),
  (SLOT, 2, 1, Window(64), 'cpu', False),
  (caches.LatentCache(None), 1, 4096, Window(64), 'gpu', False),
])  # fmt: skip
def test_who_reads_the_pool(cache, queries, pages, pattern, platform, want):
  place = Place(np.zeros((2, queries)), None, table_BT=np.zeros((2, pages)))
  assert pool.serves(cache, place, pattern, platform) == want


@pytest.mark.parametrize('name', ['full, MLA', 'union, GQA', 'union, GQA, pinned'])
def test_on_a_mesh_each_shard_reads_its_own(name):
  """Four shards of a row and two slots each, heads on two devices."""
  spec, dtype, size, ring = CASES.get(name, (HEADS(pattern=UNION), None, 8, RING))
  rng = np.random.default_rng(1)
  q, marked = query(rng, spec)
  cache, place = filled(rng, spec, dtype, size, ring), rows(rng, (23, 6, 17, -1), size)
  own = np.stack([rng.permutation(M // size) for _ in range(B)])  # by numbers of its own
  place = place._replace(
    table_BT=np.where(place.table_BT < 0, -1, own).astype('i4'), slots_B=np.int32([1, 0, 1, 1])
  )
  part = lambda tree, axis, i: jax.tree.map(
    lambda x: x if not np.ndim(x) else np.split(np.asarray(x), 4, axis)[i], tree
  )
  alone = jax.jit(functools.partial(direct, spec))
  want = [
    alone(part(q, 0, i), part(cache, 1, i), part(place, 0, i), part(marked, 0, i)) for i in range(4)
  ]
  mesh = meshes.make(meshes.Mesh(data=2, fsdp=1, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    there = jax.device_put(cache, caches.shardings(mesh, cache))
    args = placement.rows(mesh, (q, place._replace(layer=None), marked))
    run = jax.jit(
      lambda q, cache, place, marked: direct(
        spec, q, cache, place._replace(layer=jnp.int32(1)), marked
      )
    )
    run = run.lower(args[0], there, *args[1:]).compile()
    got = run(args[0], there, *args[1:])
  np.testing.assert_allclose(got, np.concatenate(want), rtol=1e-5, atol=1e-5)
  for sent in ('all-gather', 'all-reduce', 'all-to-all', 'collective', 'reduce-scatter'):
    assert sent not in run.as_text()
