"""Parameters, optimizer state and batches go where the tables say, with the same numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta

from r1jax.core import tree
from r1jax.core.errors import UserError
from r1jax.model.config import MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.sharding.mesh import Mesh

MLA_TINY = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16)
CFG = ModelConfig(
  vocab=272,
  embed=32,
  layers=(Layer(MLA_TINY, Dense(64)), Layer(MLA_TINY, MoE(ffw=32, experts=4, active=2))),
)
EXPECTED = {  # a stacked weight has its layer axis in front
  'embedding': jax.P('tensor', 'fsdp'),
  'head': jax.P('fsdp', 'tensor'),
  'final_scale': jax.P(None),
  'run0/block0/attention/q_up': jax.P(None, 'fsdp', 'tensor', None),
  'run0/block0/mlp/down': jax.P(None, 'tensor', 'fsdp'),
  'run1/block0/mlp/gate': jax.P(None, 'expert', 'fsdp', 'tensor'),
  'run1/block0/mlp/down': jax.P(None, 'expert', 'tensor', 'fsdp'),
  'run1/block0/mlp/router/bias': jax.P(None, None),
}


@pytest.fixture(scope='module')
def mesh():
  return meshes.make(Mesh(fsdp=2, expert=2, tensor=2))


@pytest.fixture(scope='module')
def params(mesh):
  with jax.set_mesh(mesh):
    return place.init(Transformer(CFG), jax.random.key(7), mesh, dummy_inputs(CFG))


def test_init_puts_each_weight_where_the_table_says(params):
  named = tree.flatten_named(params)
  assert {path: named[path].sharding.spec for path in EXPECTED} == EXPECTED
  gate = named['run1/block0/mlp/gate']
  assert gate.shape == (1, 4, 32, 32)
  assert {s.data.shape for s in gate.addressable_shards} == {(1, 2, 16, 16)}


def test_init_under_a_mesh_equals_init_without_bit_for_bit(params):
  plain = place.init(Transformer(CFG), jax.random.key(7), None, dummy_inputs(CFG))
  assert jax.tree.structure(plain) == jax.tree.structure(params)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), params, plain)


def test_no_box_leaves_init(params):
  leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
  assert all(type(leaf).__name__ == 'ArrayImpl' for leaf in leaves)


def test_templates_have_the_shapes_and_places_of_init(mesh, params):
  boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
  what = lambda x: (x.shape, x.dtype, x.sharding)
  templates = place.templates(mesh, boxed)
  assert jax.tree.map(what, templates) == jax.tree.map(what, params)
  assert place.of(params) == jax.tree.map(lambda x: x.sharding, templates)
  assert all(x.sharding is None for x in jax.tree.leaves(place.templates(None, boxed)))


def test_adams_moments_live_where_their_parameters_do(mesh, params):
  init = optax.adam(1e-3).init
  state = place.jit_init(init, mesh, params)
  assert place.of(state[0].mu) == place.of(state[0].nu) == place.of(params)
  assert state[0].count.sharding.spec == jax.P()
  wanted = place.like_templates(mesh, params, jax.eval_shape(init, params))
  assert place.of(wanted) == place.of(state)
  assert place.like_templates(None, params, 3) == 3


def test_like_asks_for_path_and_shape(mesh, params):
  derived = {'a': {'embedding': jnp.zeros((272, 32))}, 'embedding': jnp.zeros(5), 'n': jnp.ones(())}
  where = place.like(mesh, params, derived)
  assert where['a']['embedding'].spec == jax.P('tensor', 'fsdp')
  assert where['embedding'].spec == where['n'].spec == jax.P()


def test_rows_split_along_their_batch_axis(mesh):
  batch = {'a': np.arange(8), 'b': np.arange(24).reshape(3, 8)}
  placed = place.rows(mesh, batch, {'a': 0, 'b': 1})
  jax.tree.map(np.testing.assert_array_equal, placed, batch)
  assert {s.data.shape for s in placed['a'].addressable_shards} == {(2,)}
  assert {s.data.shape for s in placed['b'].addressable_shards} == {(3, 2)}
  assert isinstance(place.rows(None, batch)['a'], jax.Array)


def test_rows_that_do_not_split_are_an_error(mesh):
  said = r'a batch of 6 rows does not split over 4 devices \(mesh axes data, fsdp, expert\)'
  with pytest.raises(UserError, match=said):
    place.rows(mesh, np.zeros((6, 8)))
  with pytest.raises(UserError, match=said):
    place.check_rows(mesh, 6)
  place.check_rows(mesh, 12)
  place.check_rows(None, 5)


def test_rows_may_be_random_keys(mesh):
  key_B = jax.random.split(jax.random.key(3), 8)
  placed = place.rows(mesh, {'k': key_B})['k']
  assert jax.random.bits(placed[5]) == jax.random.bits(key_B[5])
  assert {s.data.shape for s in placed.addressable_shards} == {(2,)}


def test_one_process_holds_all_lines(mesh):
  assert place.lines_of(mesh, 8).tolist() == place.lines_of(None, 8).tolist() == list(range(8))
  batch = np.arange(16).reshape(8, 2)
  placed = place.rows(mesh, batch, lines=place.lines_of(mesh, 8), total=8)
  np.testing.assert_array_equal(placed, batch)
  with pytest.raises(UserError, match=r'a batch of 6 rows does not split over 4 devices'):
    place.lines_of(mesh, 6)


def test_rows_without_some_lines_are_an_error(mesh):
  lacking = r'rows 2 to 3 of 8 are not all held here; see lines_of'
  with pytest.raises(ValueError, match=lacking):
    place.rows(mesh, np.zeros(6), lines=np.array([0, 1, 4, 5, 6, 7]), total=8)
  with pytest.raises(ValueError, match=r'lines and total go together'):
    place.rows(mesh, np.zeros(6), lines=np.arange(6))


def test_replicated_values(mesh):
  values = {'a': np.arange(3), 'key': jax.random.key(1)}
  for where in (mesh, None):
    placed = place.put(where, values)
    assert placed['a'].tolist() == [0, 1, 2] and placed['a'].dtype == jnp.int32
    assert jax.random.bits(placed['key']) == jax.random.bits(values['key'])
  step = place.scalar(mesh, np.int32(4))
  assert step == 4 and step.dtype == jnp.int32 and step.sharding == place.replicated(mesh)
  assert place.scalar(None, 4) == 4


# Two processes; workers/checks.py says what they do.

HELD = {
  'split': ([[0, 1, 2, 3], [4, 5, 6, 7]], [[[0, 1], [1, 2], [2, 3], [3, 4]],
            [[4, 5], [5, 6], [6, 7], [7, 8]]]),
  'shared': ([[0, 1, 2, 3], [4, 5, 6, 7]], [[[0, 2], [2, 4]], [[4, 6], [6, 8]]]),
  'whole': ([list(range(8))] * 2, [[[0, 8]]] * 2),
}  # fmt: skip


@pytest.mark.parametrize('name', HELD)
def test_rows_over_two_processes(pair, name):
  """The same arrays and keys, from the whole batch and from each process' lines of it."""
  both = [p.found[name] for p in pair]
  fold = lambda i: int(jax.random.bits(jax.random.fold_in(jax.random.key(5), i)))
  x = np.arange(24)
  expected = {
    'x': x.reshape(8, 3).tolist(),
    'y': np.arange(16.0).reshape(2, 8).tolist(),
    'bits': [fold(i) for i in range(8)],
    'sum': int(x.sum()),
  }
  assert [b['whole'] for b in both] == [b['parts'] for b in both] == [expected, expected]
  assert all(b['same'] for b in both)
  lines, held = HELD[name]
  assert [b['lines'] for b in both] == lines
  assert [b['held'] for b in both] == held
  assert all('are not all held here; see lines_of' in b['lacking'] for b in both)


@pytest.mark.parametrize('name', HELD)
def test_state_over_two_processes(pair, name):
  """Born in shards and fetched whole: bit for bit what one process without a mesh makes."""
  init = nn.with_logical_partitioning(nn.initializers.normal(), ('embed', 'ffw'))
  layer = nn.Dense(8, use_bias=False, kernel_init=init)
  w = np.asarray(place.init(layer, jax.random.key(7), None, jnp.ones((1, 8)))['kernel'])
  for state in (p.found[name]['state'] for p in pair):
    assert state['fetched'] == {'w': w.tolist(), 'step': 3, 'host': [0, 1], 'a': [0, 1, 2]}
    assert state['twice'] == (2 * w).tolist()
    assert state['types'] == ['ndarray']
    assert (state['spec'], state['dtype']) == ("P('fsdp', 'tensor')", 'int32')
    assert state['replicated'] == [True, True]
    assert state['key'] == int(jax.random.bits(jax.random.key(1)))


def test_a_weight_without_axes_is_an_error(mesh):
  with pytest.raises(TypeError, match=r'parameter a/b has no logical axes; declare it by weight'):
    place.shardings(mesh, {'a': {'b': jnp.zeros(3)}})


def test_replicated(mesh):
  assert place.replicated(None) is None
  assert place.replicated(mesh).spec == jax.P()


def test_weights_that_lie_where_they_should_are_handed_over_and_others_moved(mesh, params):
  boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
  with jax.set_mesh(mesh):
    same = place.onto(mesh, boxed, params)
  assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params)))
  alone = place.onto(None, None, params)
  assert {len(x.sharding.device_set) for x in jax.tree.leaves(alone)} == {1}
  assert all(
    a is b for a, b in zip(jax.tree.leaves(place.onto(None, None, alone)), jax.tree.leaves(alone))
  )
  other = meshes.make(Mesh(data=4, tensor=2))
  for given in (params, alone, jax.tree.map(np.asarray, alone)):
    moved = place.onto(other, boxed, given)
    jax.tree.map(
      lambda x, want: x.sharding.is_equivalent_to(want, x.ndim) or pytest.fail(str(x.sharding)),
      moved, place.shardings(other, boxed),
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), moved, alone)


def test_what_the_model_does_not_name_stays_on_the_mesh_or_is_replicated(mesh, params):
  boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
  split = jax.device_put(np.arange(8.0), jax.NamedSharding(mesh, jax.P('fsdp')))
  moved = place.onto(mesh, boxed, {**params, 'adapter': split, 'host': np.ones(3)})
  assert moved['adapter'] is split
  assert moved['host'].sharding.is_fully_replicated
