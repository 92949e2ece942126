"""Caches: shapes, bytes, writing by position, int8, and that decoding does not copy them."""

import dataclasses
import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.core.errors import UserError
from r1jax.engine.generate import decode
from r1jax.model import cache as caches
from r1jax.model import presets, transformer
from r1jax.model.cache import Blocked, KVCache, LatentCache
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Hybrid,
  KeyTokens,
  Layer,
  ModelConfig,
  Window,
)
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.model.types import Place
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place as placement
from r1jax.sharding.mesh import Mesh

LATENT = Layer(MLA(4, nope=16, rope=16, value=16, kv_latent=64), Dense(32))
GROUPED = Layer(GQA(4, kv_heads=2, head=32), Dense(32))
RNG = np.random.default_rng(0)
QUANTIZE, DEQUANTIZE = jax.jit(caches.quantize), jax.jit(caches.dequantize, static_argnums=1)


def update(cache, place, new, pattern=None):
  """What every layer does: writes, then looks."""
  cache = caches.put(cache, place, new, pattern)
  return cache, caches.look(cache, place, new)


UPDATE = jax.jit(update)


def test_one_stack_a_run_and_block():
  cfg = ModelConfig(8, 8, (LATENT,) * 4 + (GROUPED, LATENT) * 3, dtype='bfloat16')
  cache = caches.empty(cfg, batch=2, length=5)
  latent = lambda n: LatentCache((n, 2, 5, 80))
  heads = (3, 2, 5, 2, 32)
  assert jax.tree.map(jnp.shape, cache) == ((latent(4),), (KVCache(heads, heads), latent(3)))
  assert {x.dtype.name for x in jax.tree.leaves(cache)} == {'bfloat16'}


def test_update_writes_one_layer_by_position_and_drops_what_is_beyond():
  cache = LatentCache(jnp.zeros((2, 2, 4, 1)))
  new = LatentCache(jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]]))
  place = Place(jnp.array([[0, 2], [3, 4]]), jnp.ones((2, 2), jnp.int32), jnp.int32(1))
  got, held = update(cache, place, new)
  want = np.array([[1, 0, 2, 0], [0, 0, 0, 3]])
  np.testing.assert_array_equal(got.kv_nBMC[..., 0], [np.zeros((2, 4)), want])
  np.testing.assert_array_equal(held.memory.kv_nBMC[..., 0], want)
  assert held.positions_BM is None


def coded(x):
  return DEQUANTIZE(QUANTIZE(x), jnp.float32)


def test_pages_in_int8_scale_the_latent_and_the_rotated_key_apart():
  cfg = ModelConfig(8, 8, (Layer(MLA(1, 4, 2, 4, 6), Dense(8)),))
  kv_BLC = RNG.normal(size=(2, 3, 8)).astype('f4') * ([1] * 6 + [100] * 2)
  place = Place(
    np.array([[2, 3, 4], [0, 1, 3]]),
    np.ones((2, 3), 'i4'),
    np.int32(0),
    np.array([[3, 0, 1], [2, -1, 9]]),  # position 3 of row 1 has no page
  )
  pages, held = UPDATE(caches.paged(cfg, 5, 2, 'int8')[0][0], place, LatentCache(kv_BLC))
  want_BLC = np.concatenate([coded(kv_BLC[..., :6]), coded(kv_BLC[..., 6:])], -1)
  got_BMC = held.memory.kv_nBMC
  np.testing.assert_array_equal(got_BMC[0, 2:5], want_BLC[0])
  np.testing.assert_array_equal(got_BMC[1, :2], want_BLC[1, :2])
  assert (got_BMC[1, 2:] == 0).all()
  ((latent, rope),) = pages.arrays
  assert (latent.values.shape, rope.values.shape) == ((1, 5, 2, 6), (1, 5, 2, 2))
  assert [page for page in range(5) if latent.values[0, page].any()] == [0, 1, 2]


def test_a_ring_knows_its_positions_by_the_newest():
  cfg = ModelConfig(8, 8, (Layer(GQA(2, 2, 4, pattern=Window(2)), Dense(8)),))
  new = KVCache(*(RNG.normal(size=(2, 3, 2, 4)).astype('f4') for _ in 'kv'))
  place = Place(
    np.array([[4, 5, 6], [0, 1, 9]]),
    np.array([[1, 1, 1], [1, 1, 0]]),
    np.int32(0),
    slots_B=np.array([2, 0]),
  )
  ring = caches.paged(cfg, 5, 2, 'int8', slots=3, ring=4)[0][0]
  ring, held = UPDATE(ring, place, new)
  np.testing.assert_array_equal(held.positions_BM, [[4, 5, 6, 3], [0, 1, -2, -1]])
  for got_BMKH, new_BLKH in zip(*map(jax.tree.leaves, (held.memory, new))):
    np.testing.assert_array_equal(got_BMKH[0, :3], coded(new_BLKH[0]))
    np.testing.assert_array_equal(got_BMKH[1, :2], coded(new_BLKH[1, :2]))
    assert (got_BMKH[1, 2:] == 0).all()
  assert not ring.arrays[0][0].values[0, 1].any()  # nobody's slot


PINNING = Hybrid(2, KeyTokens(0.5, first=0, slots=4))


def pinned(cache):
  """(positions, values) of slot 1, of values that are their own number."""
  return cache.positions_nBG[0, 1].tolist(), cache.arrays[0][0][0, 1, :, 0].tolist()


def put(cache, at, numbers, marked, pattern=PINNING):
  """Tokens at `at` and behind, of two rows; the first is padding."""
  L = len(numbers)
  place = Place(
    np.int32([[0] * L, np.arange(at, at + L)]), np.int32([[0] * L, [1] * L]), np.int32(0)
  )
  x_BLC = np.float32([[99] * L, numbers])[..., None] * np.ones(12, 'f4')
  candidate_BL1 = np.float32([[1] * L, [n in marked for n in numbers]])[..., None]
  return PUT(cache, place, LatentCache(x_BLC, candidate_BL1), pattern=pattern)


PUT = jax.jit(caches.put, static_argnames='pattern')


def test_key_tokens_are_pinned_with_their_positions():
  cfg = ModelConfig(8, 8, (Layer(MLA(1, 4, 2, 4, 10, pattern=PINNING), Dense(8)),))
  cache = caches.paged(cfg, 1, 5, None, slots=2, ring=6, longest=32)[0][0]
  none = int(caches.NONE)
  assert pinned(cache) == ([none] * 5, [0] * 5)  # four, in pages of five
  cache = put(cache, 0, [10, 11, 12, 13, 14], {10, 11, 13, 14})
  # Room for (t + 2) / 2: token 11 comes too early.
  assert pinned(cache) == ([0, 3, 4, none, none], [10, 13, 14, 0, 0])
  refused = put(cache, 5, [25, 26], {25, 26})
  assert pinned(refused)[0] == [0, 3, 4, 6, none]
  cache = put(refused, 5, [15], {})
  assert pinned(cache)[0] == [0, 3, 4, none, none]
  cache = put(cache, 6, [16, 17, 18], {17, 18})
  assert pinned(cache) == ([0, 3, 4, 7, none], [10, 13, 14, 17, 0])  # there are four slots
  held = caches.look(cache, Place(np.int32([[0], [8]]), np.int32([[0], [1]]), np.int32(0)),
                     LatentCache(jnp.zeros((2, 1, 12)), jnp.zeros((2, 1, 1))))  # fmt: skip
  np.testing.assert_array_equal(held.positions_BM[1], [6, 7, 8, 3, 4, 5, 0, 3, 4, 7, -1])
  np.testing.assert_array_equal(held.memory.candidate_nBM1[1, :, 0], [0] * 6 + [1] * 5)
  np.testing.assert_array_equal(
    held.memory.kv_nBMC[1, :, 0], [16, 17, 18, 13, 14, 15, 10, 13, 14, 17, 0]
  )
  again = put(cache, 0, [30, 31], {30, 31})
  assert pinned(again)[0] == [0, none, none, none, none]
  assert not np.asarray(again.arrays[0][0][0, 0]).any()  # nothing of the row of padding
  with pytest.raises(ValueError, match='a ring of 6 positions under a window of 2 and chunks of 6'):
    put(cache, 0, [1] * 6, {})


@pytest.mark.parametrize('attention', [GQA(8, 2, 16), MLA(8, 16, 8, 16, 56)], ids=['GQA', 'MLA'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_bytes_of_a_hybrid_layer_grow_with_its_key_tokens_alone(attention, dtype):
  hybrid = dataclasses.replace(attention, pattern=Hybrid(512, KeyTokens(0.1)))
  full, sparse = (ModelConfig(8, 8, (Layer(a, Dense(8)),) * 2) for a in (attention, hybrid))
  length = 128 * 1024
  a, b, twice = (caches.bytes_of(sparse, n, dtype, 1024) for n in (length, length // 2, 2 * length))
  assert a < 0.12 * caches.bytes_of(full, length, dtype)
  assert (twice - a) / (a - b) == pytest.approx(2, abs=0.02)
  assert caches.bytes_of(full, length, dtype) == length * caches.bytes_a_token(full, dtype)
  few = dataclasses.replace(attention, pattern=Hybrid(512, KeyTokens(0.1, slots=256)))
  few = ModelConfig(8, 8, (Layer(few, Dense(8)),) * 2)
  assert caches.bytes_of(few, length, dtype, 1024) == caches.bytes_of(few, 2 * length, dtype, 1024)


@hypothesis.given(
  hypothesis.extra.numpy.arrays('f4', (3, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32))
)
def test_int8_is_within_half_a_step_everywhere(x):
  x = np.where(np.abs(x) < 1e-30, 0, x)
  coded = QUANTIZE(x)
  back = np.asarray(DEQUANTIZE(coded, jnp.float32), 'f8')
  scale = np.asarray(coded.scale, 'f8')[:, None]
  assert (np.abs(back - x) <= scale * (0.5 + 1e-4)).all()
  assert (scale <= np.abs(x).max(1, keepdims=True) / 126).all()


@pytest.mark.parametrize('cfg, int8, wide, ratio', [
  (presets.deepseek_v3(), 35_380, 70_272, 0.504),
  (presets.qwen_7b(), 29_120, 57_344, 0.508),
  (presets.smollm2_135m(), 11_880, 46_080, 0.258),
  (presets.tiny_r1(), 336, 1280, 0.263),
])  # fmt: skip
def test_bytes_a_token(cfg, int8, wide, ratio):
  assert caches.bytes_a_token(cfg, 'int8') == int8
  assert caches.bytes_a_token(cfg) == wide
  assert int8 <= ratio * wide
  in_pages = sum(x.nbytes for x in jax.tree.leaves(caches.empty(presets.tiny_r1(), 1, 1)))
  assert caches.bytes_a_token(presets.tiny_r1()) == in_pages


def test_blocks_keep_three_branches_and_a_summary_every_stride():
  pattern = Blocks(compress=8, stride=4, select=4, selected=3, window=3)
  cfg = ModelConfig(8, 8, (Layer(GQA(2, 1, 6, pattern=pattern), Dense(8)),) * 2)
  heads = lambda *lead: KVCache(*((2, *lead, 1, 6),) * 2)
  shapes = jax.tree.map(jnp.shape, caches.empty(cfg, 3, 10)[0][0])
  assert shapes == Blocked(*(heads(3, 10),) * 3, heads(3, 3))
  pages = jax.eval_shape(lambda: caches.paged(cfg, 5, 8)[0][0])
  assert [x.shape for x in jax.tree.leaves(pages)] == [(2, 5, 8, 1, 6)] * 6 + [(2, 5, 2, 1, 6)] * 2
  assert caches.bytes_a_token(cfg) == 2 * 2 * 6 * 4 * (3 + 1 / 4)
  with pytest.raises(UserError, match='pages of 6 positions under Blocks with stride=4'):
    caches.paged(cfg, 5, 6)


def test_what_cannot_be_is_refused():
  cfg = ModelConfig(8, 8, (Layer(GQA(1, 1, 4, pattern=Window(3)), Dense(8)),))
  with pytest.raises(ValueError, match="'int4'; expected one of float32, bfloat16, int8"):
    caches.paged(cfg, 1, 1, 'int4')
  with pytest.raises(ValueError, match='a ring of 8 positions for 0 slots'):
    caches.paged(cfg, 1, 1, ring=8)
  hybrid = ModelConfig(8, 8, (Layer(GQA(1, 1, 4, pattern=PINNING), Dense(8)),))
  with pytest.raises(ValueError, match='key tokens of sequences of 0 tokens'):
    caches.paged(hybrid, 1, 1, slots=1, ring=8)
  new = KVCache(*[jnp.zeros((1, 1, 1, 4))] * 2)
  one = jnp.ones((1, 1), jnp.int32)
  with pytest.raises(ValueError, match=r'give Inputs\.table_BT'):
    caches.put(caches.paged(cfg, 1, 1)[0][0], Place(one, one, jnp.int32(0)), new)


def in_pages(params, cfg, token_B, position_B, live_B, cache):
  """A step as engine.generate.decode does it; row b owns 128 pages of 16 positions."""
  table_BT = jnp.arange(len(token_B) * 128).reshape(-1, 128)
  inputs = Inputs(token_B[:, None], position_B[:, None], live_B[:, None], (), table_BT)
  out = Transformer(cfg).apply({'params': params}, inputs, cache)
  return transformer.logits(params, cfg, out.x_BLD[:, 0]), out.cache


STEPS = {
  'dense': (decode, lambda cfg, batch: caches.empty(cfg, batch, 2048)),
  'pages': (in_pages, lambda cfg, batch: caches.paged(cfg, batch * 128, 16)),
  'slots': (in_pages, lambda cfg, batch: caches.paged(cfg, 0, 16, None, batch, 512, 2048)),
}
SHARE = Hybrid(64, KeyTokens(0.25))


@pytest.mark.optimized
@pytest.mark.parametrize('layer, kind, pattern', [
  (LATENT, 'dense', None), (GROUPED, 'dense', None), (LATENT, 'pages', None),
  (GROUPED, 'pages', None), (LATENT, 'pages', SHARE), (GROUPED, 'slots', SHARE),
  (LATENT, 'slots', Window(64)), (GROUPED, 'pages', Blocks(selected=4, window=64)),
])  # fmt: skip
def test_decode_temporaries_stay_below_a_tenth_of_the_cache(layer, kind, pattern):
  if pattern is not None:
    attention = dataclasses.replace(layer.attention, pattern=pattern)
    layer = dataclasses.replace(layer, attention=attention)
  cfg, batch = ModelConfig(64, 32, (layer,) * 16, remat='none'), 8
  one, begin = STEPS[kind]
  init = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), dummy_inputs(cfg))
  params = meta.unbox(init['params'])
  cache = jax.eval_shape(functools.partial(begin, cfg, batch))
  ids_B, live_B = (jax.ShapeDtypeStruct((batch,), t) for t in (jnp.int32, jnp.bool_))
  step = jax.jit(
    lambda params, token, position, live, cache: one(params, cfg, token, position, live, cache),
    donate_argnums=4,
  )
  memory = step.lower(params, ids_B, ids_B, live_B, cache).compile().memory_analysis()
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert memory.alias_size_in_bytes == size  # all of it is updated in place
  assert 0 < memory.temp_size_in_bytes < size / 10


BATCH = ('data', 'fsdp', 'expert')
LOCAL = Layer(GQA(4, kv_heads=2, head=4, pattern=Window(2)), Dense(8))
SPARSE = Layer(GQA(4, kv_heads=2, head=4, pattern=PINNING), Dense(8))


@pytest.fixture(scope='module')
def mesh():
  """Four shards of rows and pages; the two heads of keys and values on two devices."""
  return meshes.make(Mesh(data=2, fsdp=1, expert=2, tensor=2))


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_where_pages_and_rings_live(mesh, dtype):
  cfg = ModelConfig(8, 8, (LATENT, LOCAL, Layer(GQA(3, 3, 4), Dense(8)), SPARSE))
  made = jax.eval_shape(lambda: caches.paged(cfg, 12, 2, dtype, slots=8, ring=4, longest=9))
  where = caches.shardings(mesh, made)
  jax.tree.map(lambda x, there: there.shard_shape(x.shape), made, where)  # the same tree
  specs = [{x.spec for x in jax.tree.leaves(run)} for run in where]
  assert specs == [
    {jax.P(None, BATCH, None)},
    {jax.P(None, BATCH, None, 'tensor')},
    {jax.P(None, BATCH, None, None)},  # three heads do not split in two
    {jax.P(None, BATCH, None, 'tensor'), jax.P(None, BATCH)},
  ]


@pytest.mark.optimized
@pytest.mark.parametrize('layer, dtype, ring', [
  (LATENT, 'float32', 0), (LATENT, 'int8', 0), (LOCAL, 'float32', 0), (LOCAL, 'int8', 4),
  (SPARSE, 'float32', 4),
])  # fmt: skip
def test_each_shard_of_a_mesh_is_a_device_of_its_own(mesh, layer, dtype, ring):
  """8 rows, 24 pages, 12 slots: of each shard 2, 6 and 3, by numbers of its own."""
  rng = np.random.default_rng(1)
  cfg = ModelConfig(8, 8, (layer,) * 2)
  made = jax.eval_shape(lambda: caches.paged(cfg, 24, 2, dtype, 12, ring, longest=9)[0][0])
  begin = jax.tree.map(lambda x: rng.integers(-9, 9, x.shape).astype(x.dtype), made)
  match layer.attention:
    case MLA():
      new = LatentCache(rng.normal(size=(8, 3, 80)).astype('f4'))
    case GQA():
      new = KVCache(*rng.normal(size=(2, 8, 3, 2, 4)).astype('f4'))
      if layer is SPARSE:
        new = new._replace(candidate_nBM1=rng.integers(0, 2, (8, 3, 1)).astype('f4'))
  positions_BL = rng.integers(0, 3, (8, 1)) + np.arange(3)
  table_BT = np.argsort(rng.random((4, 6)), 1).reshape(8, 3)
  table_BT[::2, 2] = -1
  slots_B = np.argsort(rng.random((4, 3)), 1)[:, :2].reshape(8)
  rows = (positions_BL, rng.integers(0, 2, (8, 3))), (table_BT, slots_B)

  def part(tree, axis, i):
    return jax.tree.map(lambda x: np.split(np.asarray(x), 4, axis)[i], tree)

  at = lambda rows: Place(*rows[0], np.int32(1), *rows[1])
  run = functools.partial(update, pattern=layer.attention.pattern)
  one = jax.jit(run)
  with jax.set_mesh(mesh):
    pool = jax.device_put(begin, caches.shardings(mesh, made))
    on_rows, on_new = placement.rows(mesh, (rows, new))
    run = jax.jit(run, donate_argnums=0).lower(pool, at(on_rows), on_new).compile()
    cache, held = run(pool, at(on_rows), on_new)
  for i in range(4):
    cache_i, held_i = one(part(begin, 1, i), at(part(rows, 0, i)), part(new, 0, i))
    jax.tree.map(np.testing.assert_array_equal, part(cache, 1, i), cache_i)
    jax.tree.map(np.testing.assert_array_equal, part(held, 0, i), held_i)
  for sent in ('all-gather', 'all-reduce', 'all-to-all', 'collective', 'reduce-scatter'):
    assert sent not in run.as_text()
  assert run.memory_analysis().alias_size_in_bytes == sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cache)
  )


def test_what_does_not_split_over_a_mesh_is_refused(mesh):
  cfg = ModelConfig(8, 8, (LATENT, LOCAL))
  made = jax.eval_shape(lambda: caches.paged(cfg, 10, 2))
  with pytest.raises(UserError, match='10 pages of a cache do not split over 4 devices'):
    caches.shardings(mesh, made)
  made = jax.eval_shape(lambda: caches.paged(cfg, 8, 2, slots=6, ring=4))
  with pytest.raises(UserError, match='6 slots of a cache do not split over 4 devices'):
    caches.shardings(mesh, made)
  one, new = jnp.ones((2, 1), jnp.int32), LatentCache(jnp.zeros((2, 1, 80)))
  place = Place(one, one, jnp.int32(0), one)
  with jax.set_mesh(mesh), pytest.raises(UserError, match='a batch of 2 rows does not split over'):
    caches.put(made[0][0], place, new)
