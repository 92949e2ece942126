"""Prefill and decode over paged memory on a mesh give what one device gives without a cache.

Every row's pages lie scrambled among those of its shard; some rows are holes, on some meshes a
whole shard. Tables are far wider than needed, so that memory would be the largest array to move.
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from r1jax.engine import steps
from r1jax.engine.drafts import Modules
from r1jax.engine.sampling import RequestSampling, controls
from r1jax.engine.speculative import module_caches
from r1jax.model import cache as caches
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, Window
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place, rules
from r1jax.sharding.mesh import Mesh

B, L, TOTAL, SIZE, PAGES, WIDE = 16, 8, 13, 4, 80, 64
RING = 6 + L - 1
LATENT = MLA(8, nope=2, rope=8, value=2, kv_latent=16, std=0.3)  # expands L queries, absorbs one
LOCAL = GQA(16, 8, 4, pattern=Window(6), std=0.3)
CFG = ModelConfig(
  vocab=32,
  embed=16,
  layers=(
    Layer(LATENT, MoE(8, experts=8, active=2, std=0.3)),
    Layer(LOCAL, Dense(16, std=0.3)),
    Layer(GQA(8, 8, 4, std=0.3), Dense(16, std=0.3)),
  ),
  std=0.3,
  remat='none',
)
DRAFTING = dataclasses.replace(CFG, layers=CFG.layers[:1], mtp=CFG.layers[2:], std=0.6)
MESHES = {
  'data=8': Mesh(data=8, fsdp=1),
  'data=2, expert=2, tensor=2': Mesh(data=2, fsdp=1, expert=2, tensor=2),
  'fsdp=4, tensor=2': Mesh(fsdp=4, tensor=2),
  'tensor=8': Mesh(fsdp=1, tensor=8),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, CFG.vocab, (B, TOTAL)).astype('i4')
PROMPT = RNG.integers(1, L + 1, B)
END = PROMPT + RNG.integers(0, TOTAL - L + 1, B)
PROMPT[[2, 6, 7]] = END[[2, 6, 7]] = 0  # of data=8, shard 3 has nothing to do
MOVES = re.compile(
  r'= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
)


@pytest.fixture(scope='module')
def params():
  return place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))


@pytest.fixture(scope='module')
def want(params):
  """x of every position without a cache; NaN where a row has none."""
  at = np.broadcast_to(np.arange(TOTAL, dtype='i4'), (B, TOTAL))
  there = at < END[:, None]
  x_BTD, _ = apply(params, None, Inputs(TOKENS, at, there.astype('i4')))
  return np.where(there[..., None], x_BTD, np.nan)


@jax.jit
def apply(params, cache, inputs):
  out = Transformer(CFG).apply({'params': params}, inputs, cache)
  return out.x_BLD, out.cache


def tables(shards):
  """Page numbers that count from the shard's first."""
  table_BT = np.full((B, WIDE), -1, 'i4')
  own, each = -(-TOTAL // SIZE), B // shards
  for first in range(0, B, each):
    mine = RNG.permutation(PAGES // shards)[: each * own]
    table_BT[first : first + each, :own] = mine.reshape(each, own)
  return table_BT


def walk(step, cache, shards):
  """Prefill, then one token at a time; rows end when they end. Gives x [B, TOTAL, D]."""
  got_BTD, table_BT = np.full((B, TOTAL, CFG.embed), np.nan, 'f4'), tables(shards)
  start, stop = np.zeros(B, 'i4'), PROMPT
  while (start < stop).any():
    width = L if not start.any() else 1
    at = (start[:, None] + np.arange(width)).astype('i4')
    valid = at < stop[:, None]
    tokens = np.take_along_axis(TOKENS, np.minimum(at, TOTAL - 1), 1)
    x_BLD, cache = step(cache, Inputs(tokens, at, valid.astype('i4'), (), table_BT))
    row, column = np.nonzero(valid)
    got_BTD[row, at[row, column]] = np.asarray(x_BLD)[row, column]
    start, stop = stop, np.minimum(stop + 1, END)
  return got_BTD, cache


def make(dtype):
  return caches.paged(CFG, PAGES, SIZE, dtype, slots=B, ring=RING)


def on_mesh(params, spec, dtype):
  """(x, the cache, the compiled steps, where the cache should live) on the mesh."""
  mesh, programs, donating = meshes.make(spec), {}, jax.jit(apply, donate_argnums=1)
  with jax.set_mesh(mesh):
    boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
    sharded = jax.device_put(params, place.shardings(mesh, boxed))
    where = caches.shardings(mesh, jax.eval_shape(functools.partial(make, dtype)))
    cache = jax.jit(functools.partial(make, dtype), out_shardings=where)()

    def step(cache, inputs):
      inputs = place.rows(mesh, inputs)
      width = inputs.tokens_BL.shape[1]
      if width not in programs:
        programs[width] = donating.lower(sharded, cache, inputs).compile()
      return programs[width](sharded, cache, inputs)

    shards = rules.axis_size(rules.ACTIVATIONS['batch'], dict(mesh.shape))
    return *walk(step, cache, shards), programs.values(), where


def moved(text):
  """Elements of the largest array that a program sends to another device."""
  shapes = [s for made in MOVES.findall(text) for s in re.findall(r'\[([\d,]*)\]', made)]
  return max((math.prod(map(int, filter(None, s.split(',')))) for s in shapes), default=0)


def test_moved_finds_the_largest():
  text = """
    a = f32[4,8]{1,0} all-reduce(b), to_apply=c
    d = (s32[2,3]{1,0}, f32[9,9]{1,0}) all-gather-start(e, f), op_name="x/[99,99]"
    g = f32[70,70] add(h, i)"""
  assert moved(text) == 81 and moved('a = f32[3] add(b, c)') == 0


@pytest.mark.parametrize('name', MESHES)
def test_a_mesh_gives_what_one_device_gives_and_moves_no_memory(params, want, name):
  spec = MESHES[name]
  got, cache, programs, where = on_mesh(params, spec, None)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  for array, there in zip(jax.tree.leaves(cache), jax.tree.leaves(where), strict=True):
    assert array.sharding.is_equivalent_to(there, array.ndim)
  assert len(programs) == 2
  held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cache))
  for program in programs:
    assert moved(program.as_text()) < B * WIDE * SIZE * 24 // 8  # an eighth of the latents
    assert program.memory_analysis().alias_size_in_bytes == held  # updated in place


@pytest.fixture(scope='module')
def int8(params):
  """One device's x over an int8 cache."""
  return walk(functools.partial(apply, params), make('int8'), 1)[0]


@pytest.mark.parametrize('name', list(MESHES)[:2])
def test_in_int8_too(params, want, int8, name):
  """Sums of another order now and then round to the next step; that is far below the coding."""
  got, *_ = on_mesh(params, MESHES[name], 'int8')
  error = lambda a, b: np.sqrt(np.nanmean((a - b) ** 2) / np.nanmean(b**2))
  np.testing.assert_array_equal(np.isnan(got), np.isnan(int8))
  assert error(got, int8) < error(int8, want) / 10


@pytest.fixture(scope='module')
def drafting():
  return place.init(Transformer(DRAFTING), jax.random.key(2), None, dummy_inputs(DRAFTING))


def written(params, mesh):
  """What the steps write on the mesh or, without one, on one device: (prefill's, a burst's)."""
  shards = 1 if mesh is None else rules.axis_size(rules.ACTIVATIONS['batch'], dict(mesh.shape))
  settings, kinds = controls([RequestSampling(0.0), RequestSampling(0.9)] * (B // 2))
  seed_BW = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), B)))
  told = place.rows(mesh, steps.Rows(tables(shards), seed_BW, settings))
  known = {'cfg': DRAFTING, 'kinds': kinds, 'drafting': Modules(1)}
  begin = lambda: steps.Memory(
    caches.paged(DRAFTING, PAGES, SIZE),
    module_caches(DRAFTING, lambda cfg: caches.paged(cfg, PAGES, SIZE)),
  )
  where = mesh and caches.shardings(mesh, jax.eval_shape(begin))
  memory = jax.jit(begin, out_shardings=where)()
  length = np.where(END > 0, PROMPT, 0).astype('i4')
  given = TOKENS[:, :L], np.full(B, -1, 'i4'), np.zeros(B, 'i4'), length
  fill = jax.jit(functools.partial(steps.prefill, **known), donate_argnums=1)
  memory, made = fill(params, memory, *place.rows(mesh, given), told)
  burst = jax.jit(
    functools.partial(steps.decode, stops=(5,), most=TOTAL - L, **known), donate_argnums=1
  )
  given = (
    made.drawn.token_B,
    made.draft_BK,
    *place.rows(mesh, (length, (END - PROMPT).astype('i4'))),
  )
  burst = burst.lower(params, memory, *given, told, np.int32(TOTAL), np.int32(99)).compile()
  memory, out = burst(params, memory, *given, told, np.int32(TOTAL), np.int32(99))
  return jax.device_get((made._replace(routes=()), out._replace(routes=()))), burst


def test_the_steps_of_the_engine_on_a_mesh(drafting):
  """Tokens, numbers, drafts offered and accepted are one device's; no memory moves."""
  want, _ = written(drafting, None)
  mesh = meshes.make(MESHES['data=2, expert=2, tensor=2'])
  boxed = place.abstract(Transformer(DRAFTING), dummy_inputs(DRAFTING))
  with jax.set_mesh(mesh):
    got, burst = written(jax.device_put(drafting, place.shardings(mesh, boxed)), mesh)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)
  assert want[1].accepted_B.any() and moved(burst.as_text()) < B * WIDE * SIZE * 24 // 8
