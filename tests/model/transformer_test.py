"""The whole model: packing, replay, scan against blocks, remat, detached prediction, birth.

One program gives outputs and gradients for most tests: compiling is what takes time here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.core import tree
from r1jax.model import transformer
from r1jax.model.block import Block
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, Rope, Yarn, runs
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import LayerIn, LayerOut, Place, Term
from r1jax.sharding import place as placement
from r1jax.sharding.mesh import Mesh, make

LATENT = MLA(2, 4, 4, 4, 8, 6, Rope(scaling=Yarn()), std=0.3)
GROUPED = GQA(2, 1, 6, qk_norm=True, std=0.3)
EXPERTS = MoE(6, experts=8, active=2, groups=4, active_groups=2, scale=2.5, std=0.3)
SPARSE = Layer(LATENT, EXPERTS)
CFG = ModelConfig(
  vocab=24,
  embed=8,
  layers=(Layer(LATENT, Dense(12, std=0.3)), *(Layer(GROUPED, EXPERTS), SPARSE) * 2),
  mtp=(Layer(GROUPED, EXPERTS),),
  std=0.3,
  remat='none',
)
L = 8
RNG = np.random.default_rng(0)
TOKENS, AHEAD = RNG.integers(0, CFG.vocab, (2, 4, L)).astype('i4')
PACKED = [(0, 0, 5), (0, 5, 8), (1, 0, 3), (1, 3, 7)]  # (row, from, to) of each sequence
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 0], [0] * L, [0] * L], 'i4')
SEGMENTS = np.array([[1] * 5 + [2] * 3, [1] * 3 + [2] * 4 + [0], [0] * L, [0] * L], 'i4')
INPUTS = Inputs(TOKENS, POSITIONS, SEGMENTS, (AHEAD,))
G = RNG.normal(size=(2, 4, L, CFG.embed)).astype('f4') * (SEGMENTS > 0)[..., None]
BOTH, AHEAD_ONLY = (1.0, 1.0), (0.0, 1.0)
REMAT = dataclasses.replace(CFG, remat='full')


@functools.partial(
  jax.jit,
  static_argnames=('cfg', 'detach'),
  compiler_options={'xla_backend_optimization_level': 0},
)
def program(params, inputs, routes, mix, cfg, detach):
  """(Output, gradients) for a loss over trunk and prediction module, mixed as given."""

  def loss(params):
    out = Transformer(cfg).apply({'params': params}, inputs, None, routes, detach)
    return mix[0] * jnp.sum(out.x_BLD * G[0]) + mix[1] * jnp.sum(out.mtp[0] * G[1]), out

  grads, out = jax.grad(loss, has_aux=True)(params)
  return out, grads


def run(params, inputs, routes=None, mix=BOTH, cfg=CFG, detach=False):
  """The program; an argument left out and the same one given would be compiled twice."""
  return program(params, inputs, routes, mix, cfg, detach)


@pytest.fixture(scope='module')
def params():
  """Normal numbers, drawn by numpy: to compile the drawing takes longer than the model."""
  shapes = placement.templates(None, placement.abstract(Transformer(CFG), INPUTS))
  return jax.tree.map(lambda x: jnp.asarray(0.3 * RNG.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture(scope='module')
def done(params):
  return run(params, INPUTS)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_contract_07_packed_segments_are_their_own_unpacked_sequences(params, done):
  out, _ = done
  tokens, ahead, segments = (np.zeros((len(PACKED), L), 'i4') for _ in range(3))
  for i, (row, a, b) in enumerate(PACKED):
    tokens[i, : b - a], ahead[i, : b - a] = TOKENS[row, a:b], AHEAD[row, a:b]
    segments[i, : b - a] = 1
  positions = np.broadcast_to(np.arange(L, dtype='i4'), tokens.shape)
  alone, _ = run(params, Inputs(tokens, positions, segments, (ahead,)))
  for i, (row, a, b) in enumerate(PACKED):
    assert_close(alone.x_BLD[i, : b - a], out.x_BLD[row, a:b])
    assert_close(alone.mtp[0][i, : b - a], out.mtp[0][row, a:b])
  assert_close(alone.load, out.load, 0)
  assert_close(alone.balance, out.balance)
  assert out.balance.weight == len(PACKED) * 5  # four expert layers and the prediction module


def test_contract_05_routing_replay_gives_the_rollouts_experts(params, done):
  out, grads = done
  bias_nE = jnp.tile(jnp.linspace(-3, 3, EXPERTS.experts), (2, 1))
  moved = tree.map_named(lambda path, x: bias_nE if tree.match('run1/.*/bias', path) else x, params)
  pairs = zip(jax.tree.leaves(run(moved, INPUTS)[0].routes), jax.tree.leaves(out.routes))
  assert all((free != rollout).any() for free, rollout in pairs)
  replayed, replayed_grads = run(moved, INPUTS, out.routes, cfg=REMAT)
  jax.tree.map(np.testing.assert_array_equal, replayed.routes, out.routes)
  assert_close(replayed.x_BLD, out.x_BLD)  # the bias chooses, it does not weigh
  assert_close(replayed.load, out.load, 0)
  assert_close(replayed_grads, grads, 1e-4)
  assert np.abs(replayed_grads['run1']['block0']['mlp']['router']['weight']).max() > 0


def test_the_scan_is_the_blocks_one_by_one(params, done):
  table = tuple((len(run.period), run.repeats) for run in runs(CFG.layers))
  assert table == ((1, 1), (2, 2))
  apply = jax.jit(
    lambda spec, layer, x_BLD: Block(spec).apply(
      {'params': layer}, x_BLD, Place(POSITIONS, SEGMENTS), LayerIn()
    )[0],
    static_argnums=0,
  )
  x_BLD = params['embedding'][TOKENS]
  for i, spec in enumerate(CFG.layers):
    x_BLD = apply(spec, tree.layer(params, table, i), x_BLD)
    assert_close(x_BLD, transformer.stream(done[0], CFG, i))
  x_BLD /= jnp.sqrt(jnp.mean(x_BLD**2, -1, keepdims=True) + CFG.eps)
  assert_close(x_BLD * params['final_scale'], done[0].x_BLD)


def test_a_stack_hands_on_what_its_layers_give(done):
  out, _ = done
  assert [
    [r.experts if r.experts is None else r.experts.shape for r in run] for run in out.routes
  ] == [
    [None],
    [(2, 4, L, 2), (2, 4, L, 2)],
  ]
  counted = {path: (load.shape, float(load.sum())) for path, load in out.load.items()}
  tokens = float((SEGMENTS > 0).sum() * EXPERTS.active)
  assert counted == {
    'run1/block0/mlp/router/bias': ((2, 8), 2 * tokens),
    'run1/block1/mlp/router/bias': ((2, 8), 2 * tokens),
    'mtp0/block/mlp/router/bias': ((8,), tokens),
  }
  assert out.cache is None


@pytest.mark.parametrize('layer', [-1, len(CFG.layers)])
def test_a_stream_behind_no_layer_is_refused(done, layer):
  with pytest.raises(ValueError, match=f'layer {layer} of 5; expected 0 … 4'):
    transformer.stream(done[0], CFG, layer)


@pytest.mark.optimized
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_streams_that_nobody_reads_cost_no_memory(remat):
  """Forward: the bytes of a model of twice the layers are those of one; a gradient has its own."""
  layer = Layer(GQA(2, 1, 8), Dense(16))

  def temporaries(layers, read):
    cfg = ModelConfig(8, 8, (layer,) * layers, remat=remat)
    shapes = placement.templates(
      None, placement.abstract(Transformer(cfg), transformer.dummy_inputs(cfg))
    )

    def run(params, ids_BL):
      out = Transformer(cfg).apply({'params': params}, Inputs(ids_BL, ids_BL, ids_BL))
      return out.x_BLD, [transformer.stream(out, cfg, i) for i in read]

    ids_BL = jax.ShapeDtypeStruct((4, 256), 'i4')
    return jax.jit(run).lower(shapes, ids_BL).compile().memory_analysis().temp_size_in_bytes

  stream = 4 * 4 * 256 * 8
  assert temporaries(64, ()) < temporaries(32, ()) + stream
  assert temporaries(64, (3,)) > temporaries(64, ()) + 32 * stream


def test_a_dense_model_has_no_load_and_no_terms():
  assert transformer.terms({'run0/block0': LayerOut()}) == ({}, Term(0, 0), Term(0, 0))


def test_remat_changes_no_gradient(params, done):
  out, grads = done
  assert_close(run(params, INPUTS, out.routes, cfg=REMAT)[1], grads)


def largest(grads):
  return {path: np.abs(g).max() for path, g in tree.flatten_named(grads).items()}


def test_a_detached_prediction_module_leaves_the_trunk_alone(params):
  attached = largest(run(params, INPUTS, mix=AHEAD_ONLY)[1])
  detached = largest(run(params, INPUTS, mix=AHEAD_ONLY, detach=True)[1])
  inside = {path for path in attached if path.startswith('mtp0/')}
  never = {'head', *(path for path in attached if path.endswith('router/bias'))}
  assert {path for path, size in attached.items() if size > 0} == attached.keys() - never
  assert {path for path, size in detached.items() if size > 0} == inside - never


def test_parameters_are_born_as_plain_arrays_in_their_places():
  cfg = ModelConfig(8, 8, (Layer(GQA(2, 2, 4), EXPERTS),))
  inputs = transformer.dummy_inputs(cfg)
  is_box = lambda x: isinstance(x, meta.AxisMetadata)
  boxed = placement.abstract(Transformer(cfg), inputs)
  assert all(is_box(x) for x in jax.tree.leaves(boxed, is_leaf=is_box))
  mesh = make(Mesh(fsdp=2, expert=2, tensor=2))
  born = placement.init(Transformer(cfg), jax.random.key(0), mesh, inputs)
  assert not any(is_box(x) for x in jax.tree.leaves(born, is_leaf=is_box))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(born))
  gate_nEDF = born['run0']['block0']['mlp']['gate']
  assert gate_nEDF.sharding.spec == jax.P(None, 'expert', 'fsdp', 'tensor')


def test_the_head_is_the_embedding_where_tied():
  x_BD = jnp.asarray(RNG.normal(size=(2, 8)), jnp.float32)
  table_VD, head_DV = RNG.normal(size=(24, 8)).astype('f4'), RNG.normal(size=(8, 24)).astype('f4')
  both = {'embedding': jnp.asarray(table_VD), 'head': jnp.asarray(head_DV)}
  tied = dataclasses.replace(CFG, tied=True)
  assert_close(transformer.logits(both, tied, x_BD), x_BD @ table_VD.T)
  assert_close(transformer.logits(both, CFG, x_BD), x_BD @ head_DV)
  assert transformer.logits(both, CFG, x_BD.astype(jnp.bfloat16)).dtype == jnp.float32
  shapes = placement.abstract(Transformer(tied), transformer.dummy_inputs(tied))
  assert 'head' not in shapes
