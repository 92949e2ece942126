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
from r1jax.model.cache import KVCache
from r1jax.model.config import GQA, Blocks, Dense, Layer, ModelConfig
from r1jax.model.nsa import NativelySparseAttention, Phi
from r1jax.model.types import Place
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place as placement

B, T, D, N, K, H, SCALE = 4, 24, 8, 4, 2, 6, 0.3
PATTERN = Blocks(compress=4, stride=2, select=4, selected=3, first=1, local=1, window=5)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype('f4')
X[1, :8] = X[0, :8]


def pages(pattern, count, size, dtype=None, head=H):
  """Of the two layers of a model."""
  spec = GQA(N, K, head, pattern=pattern)
  cfg = ModelConfig(8, D, (Layer(spec, Dense(8)),) * 2)
  return caches.paged(cfg, count, size, dtype)[0][0]


# Whole sequences against decoding.


@functools.cache
def step():
  """The module with random weights, over a cache by lists if it decodes."""
  module = NativelySparseAttention(GQA(N, K, H, qk_norm=True, pattern=PATTERN))
  one = jnp.ones((1, 8), jnp.int32)
  shapes = placement.abstract(module, X[:1, :8], Place(one, one), None)
  draw = np.random.default_rng(1).normal
  params = jax.tree.map(
    lambda s: np.float32(0.5 * draw(size=s.shape)), placement.templates(None, shapes)
  )

  @jax.jit
  def run(x_BLD, place, cache=None):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(pool, '_cheaper', lambda *_: True)
      y_BLD, kept = module.apply({'params': params}, x_BLD, place, cache)
    return y_BLD, kept.cache

  return run


def stale(x):
  return jnp.full_like(x, 99 if x.dtype == jnp.int8 else jnp.nan)


@pytest.mark.parametrize('dtype, tolerance', [(None, 1e-5), ('int8', 0.15)])
@hypothesis.settings(max_examples=3)
@hypothesis.given(lengths=st.tuples(*[st.integers(1, 9)] * 3))
def test_contract_04_decoding_by_lists_equals_the_whole_sequence(dtype, tolerance, lengths):
  """Prompts come in chunks of 5, the rest by token; rows 0 and 1 share pages, 3 is padding."""
  table_BT = np.random.default_rng(0).permutation(B * T // 4).reshape(B, -1).astype('i4')
  table_BT[1, :2] = table_BT[0, :2]
  cache = jax.tree.map(stale, pages(PATTERN, B * T // 4, 4, dtype))
  at_BT = np.broadcast_to(np.arange(T, dtype='i4'), (B, T))
  want_BTD = step()(X, Place(at_BT, np.ones((B, T), 'i4')))[0]
  from_B, got_BTD = np.int32([0, 8, 0, T]), np.array(want_BTD)
  got_BTD[0], got_BTD[1, 8:], got_BTD[2] = np.nan, np.nan, np.nan
  prompt_B = from_B + np.int32([8 + lengths[0], *lengths[1:], 0])
  while (from_B < T).any():
    filling_B = from_B < prompt_B
    width = 5 if filling_B.any() else 1
    counts_B = np.minimum(width, np.where(filling_B, prompt_B, T) - from_B)
    counts_B *= (filling_B | (width == 1)) & ((from_B[0] >= 8) | (np.arange(B) != 1))
    at_BL = from_B[:, None] + np.arange(width, dtype='i4')
    place = Place(at_BL, np.int32(at_BL < (from_B + counts_B)[:, None]), np.int32(1), table_BT)
    x_BLD = np.take_along_axis(X, np.minimum(at_BL, T - 1)[..., None], 1)
    y_BLD, cache = step()(x_BLD, place, cache)
    for b, n in enumerate(counts_B):
      got_BTD[b, from_B[b] : from_B[b] + n] = y_BLD[b, :n]
    from_B = from_B + counts_B
    assert width > 1 or not np.asarray(y_BLD)[counts_B == 0].any()
  np.testing.assert_allclose(got_BTD, want_BTD, rtol=tolerance, atol=tolerance)


# Lists against copies.


def summarize(raw, starts_BC, positions_BC):
  """By fixed weights, and so that keys tell their positions."""
  draw = np.random.default_rng(2).normal
  Z = PATTERN.compress
  phis = [Phi(*(np.float32(draw(size=s)) for s in ((Z, H), (Z * H, H), (H, H)))) for _ in 'kv']
  k_BCKH, v_BCKH = (nsa.summed_up(x, starts_BC, phi) for x, phi in zip(raw, phis))
  return k_BCKH + jnp.sin(positions_BC)[..., None, None], v_BCKH


def lists(pattern, q, cache, new, place, sums=summarize):
  return nsa_pool.over_pool(q, cache, new, place, pattern, SCALE, sums)


def copies(pattern, q, cache, new, place, sums=summarize):
  cache, met = nsa.of_cache(cache, new, place, pattern, sums)
  return cache, nsa.branches(q, met, pattern, SCALE)


def drawn(rng, pattern, size, dtype, newest):
  """A token for each row at these positions, −1 is padding, over pools that are full of numbers."""

  def fill(stack):
    int8 = isinstance(stack, caches.Int8)
    x = jnp.asarray(rng.normal(size=(stack.values if int8 else stack).shape), jnp.float32)
    return caches.quantize(x) if int8 else x.astype(stack.dtype)

  cache = jax.eval_shape(lambda: pages(pattern, B * T // size, size, dtype))
  cache = jax.tree.map(fill, cache, is_leaf=lambda x: isinstance(x, caches.Int8))
  newest_B1 = np.int32(newest)[:, None]
  table_BT = rng.permutation(B * T // size).reshape(B, -1)
  table_BT = np.where(np.arange(T // size) <= newest_B1 // size, table_BT, -1).astype('i4')
  place = Place(np.maximum(newest_B1, 0), np.int32(newest_B1 >= 0), np.int32(1), table_BT)
  q, *new = (rng.normal(size=(B, 1, n, H)).astype('f4') for n in (N, *[K] * 6))
  return q, cache, [KVCache(*new[i : i + 2]) for i in (0, 2, 4)], place


CASES = {
  'pages of a block': (PATTERN, 4, None),
  'many blocks a page, int8': (PATTERN, 12, 'int8'),
  'many pages a block': (Blocks(4, 2, 8, 2, 0, 1, 3), 2, None),
  'neither, bf16': (Blocks(4, 2, 6, 4, 1, 2, 3), 4, 'bfloat16'),
  'three strides a summary': (Blocks(4, 1, 4, 2, 0, 0, 9), 8, None),
}


@functools.cache
def both(name):
  return tuple(jax.jit(functools.partial(f, CASES[name][0])) for f in (lists, copies))


@pytest.mark.parametrize('name', CASES)
@hypothesis.settings(max_examples=6)
@hypothesis.given(newest=st.tuples(*[st.integers(-1, T - 1)] * B), seed=st.integers(0, 99))
def test_lists_and_copies_give_the_same_numbers(name, newest, seed):
  args = drawn(np.random.default_rng(seed), *CASES[name], newest)
  (cache, got), (kept, want) = (run(*args) for run in both(name))
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not np.asarray(a)[np.int32(newest) < 0].any()
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), cache, kept)


def test_on_a_mesh_each_shard_reads_its_own():
  """Four shards of a row each, heads on two devices."""
  rng = np.random.default_rng(1)
  q, cache, new, place = drawn(rng, PATTERN, 4, None, (23, 6, 17, -1))
  own_BT = np.stack([rng.permutation(T // 4) for _ in range(B)])  # by numbers of its own
  place = place._replace(table_BT=np.where(place.table_BT < 0, -1, own_BT).astype('i4'))
  part = lambda tree, axis, i: jax.tree.map(
    lambda x: x if not np.ndim(x) else np.split(np.asarray(x), B, axis)[i], tree
  )
  alone = jax.jit(functools.partial(lists, PATTERN))
  want = [alone(part(q, 0, i), part(cache, 1, i), *part((new, place), 0, i)) for i in range(B)]
  mesh = meshes.make(meshes.Mesh(data=2, fsdp=1, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    there = jax.device_put(cache, caches.shardings(mesh, cache))
    q, new, place = placement.rows(mesh, (q, new, place._replace(layer=None)))
    run = jax.jit(
      lambda q, cache, new, place: lists(PATTERN, q, cache, new, place._replace(layer=jnp.int32(1)))
    )
    run = run.lower(q, there, new, place).compile()
    kept, got = run(q, there, new, place)
  join = lambda axis: lambda *x: np.concatenate(x, axis)
  check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(check, got, jax.tree.map(join(0), *(parts for _, parts in want)))
  jax.tree.map(check, kept, jax.tree.map(join(1), *(cache for cache, _ in want)))
  for sent in ('all-gather', 'all-reduce', 'all-to-all', 'collective', 'reduce-scatter'):
    assert sent not in run.as_text()


@pytest.mark.parametrize('way, least, most', [(lists, 0, 0.25), (copies, 1, 9)])
def test_temporaries_of_lists_do_not_grow_as_copies_do(way, least, most):
  pattern, rows, head = Blocks(16, 16, 16, 2, 0, 1, 8), 2, 32

  def first(raw, starts_BC, positions_BC):
    return tuple(x[:, :1] for x in raw[:2])

  def temporaries(length):
    shape = lambda *s, dtype='f4': jax.ShapeDtypeStruct((rows, *s), dtype)
    cache = jax.eval_shape(lambda: pages(pattern, rows * length // 16, 16, None, head))
    one_B1, table_BT = shape(1, dtype='i4'), shape(length // 16, dtype='i4')
    place = Place(one_B1, one_B1, jax.ShapeDtypeStruct((), 'i4'), table_BT)
    new = [KVCache(*[shape(1, K, head)] * 2)] * 3
    run = jax.jit(functools.partial(way, pattern, sums=first), donate_argnums=1)
    made = run.lower(shape(1, N, head), cache, new, place).compile()
    return made.memory_analysis().temp_size_in_bytes

  grown = temporaries(4096) - temporaries(1024)
  assert least <= grown / (rows * 3072 * 2 * K * head * 4) <= most
