"""The tables from logical names to mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.sharding import mesh as meshes
from r1jax.sharding import rules
from r1jax.sharding.mesh import Mesh


@pytest.fixture(scope='module')
def mesh():
  return meshes.make(Mesh(fsdp=2, expert=2, tensor=2))


def test_spec_translates_names():
  assert rules.spec(('expert', 'embed', 'ffw'), rules.WEIGHTS) == jax.P('expert', 'fsdp', 'tensor')
  assert rules.spec((None, 'head'), rules.WEIGHTS) == jax.P(None, None)
  batch = ('data', 'fsdp', 'expert')
  assert rules.spec(('batch', 'length'), rules.ACTIVATIONS) == jax.P(batch, 'context')


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(KeyError, match=r"unknown logical axis 'embd'; known: embed, expert, ffw"):
    rules.spec(('embd',), rules.WEIGHTS)


def test_tables_name_mesh_axes_only():
  for entry in (*rules.WEIGHTS.values(), *rules.ACTIVATIONS.values()):
    assert set((entry,) if isinstance(entry, str) else entry or ()) <= set(meshes.AXES)


def test_axis_size():
  sizes = {'data': 2, 'fsdp': 3, 'tensor': 5}
  entries = (None, 'fsdp', ('data', 'tensor'), ())
  assert [rules.axis_size(e, sizes) for e in entries] == [1, 3, 10, 1]


def test_weight_sharding_and_its_error(mesh):
  where = rules.weight_sharding(mesh, 'mlp/gate', (4, 6), ('embed', 'ffw'))
  assert where.spec == jax.P('fsdp', 'tensor') and where.mesh == mesh
  with pytest.raises(UserError) as caught:
    rules.weight_sharding(mesh, 'mlp/gate', (4, 5), ('embed', 'ffw'))
  for part in ('weight mlp/gate', "axis 'ffw' of size 5", "mesh axis 'tensor' of size 2"):
    assert part in str(caught.value)


def test_fitting_leaves_whole_what_does_not_divide(mesh):
  batch = ('data', 'fsdp', 'expert')
  assert rules.fitting((8, 3, 4), ('batch', None, 'heads'), mesh) == jax.P(batch, None, 'tensor')
  assert rules.fitting((6, 3, 3), ('batch', None, 'heads'), mesh) == jax.P(None, None, None)


@pytest.mark.parametrize(
  'heads, kv_heads, tensor, copies',
  [
    (8, 8, 4, 1),  # whole kv heads on each device
    (8, 4, 4, 1),
    (8, 2, 4, 2),  # two devices share one
    (8, 1, 8, 8),
    (12, 3, 4, 1),  # a device would need parts of two
    (6, 2, 4, 1),  # the query heads do not divide
    (8, 2, 1, 1),
  ],
)
def test_kv_heads_are_repeated_where_that_splits_them(heads, kv_heads, tensor, copies):
  mesh = jax.sharding.AbstractMesh((tensor,), ('tensor',))
  assert rules.kv_copies(heads, kv_heads, mesh) == copies


def test_constrain_places_activations_and_changes_no_number(mesh):
  x = jnp.arange(8.0 * 3 * 4).reshape(8, 3, 4)
  assert rules.constrain(x, 'batch', 'length', 'heads') is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: rules.constrain(x, 'batch', 'length', 'heads'))(x)
    odd = jax.jit(lambda x: rules.constrain(x, 'batch', None, 'heads'))(x[:3])
  np.testing.assert_array_equal(y, x)
  np.testing.assert_array_equal(odd, x[:3])
  assert y.sharding.shard_shape(y.shape) == (2, 3, 2)
  assert odd.sharding.shard_shape(odd.shape)[2] == 2


def test_by_rows_sends_nothing(mesh):
  f = lambda x, named: (jax.lax.top_k(x, 2), x.max(1) + named['b'])
  call = lambda *args: rules.by_rows(f, *args)
  x, named = (
    np.random.default_rng(0).normal(size=(8, 5)).astype('f4'),
    {'b': np.arange(8, dtype='f4')},
  )
  want = f(x, named)
  jax.tree.map(np.testing.assert_array_equal, call(x, named), want)  # no mesh
  with jax.set_mesh(mesh):
    x_on, named_on = jax.device_put((x, named), jax.NamedSharding(mesh, jax.P(('fsdp', 'expert'))))
    run = jax.jit(call).lower(x_on, named_on).compile()
    got = run(x_on, named_on)
    odd = jax.jit(lambda x: rules.by_rows(jnp.sort, x))(x[:6])
  jax.tree.map(np.testing.assert_array_equal, got, want)
  np.testing.assert_array_equal(odd, np.sort(x[:6]))
  assert 'all-' not in run.as_text() and 'collective' not in run.as_text()
