"""The store: exact round trips, any mesh, and one clear line for whatever is wrong."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding

from r1jax.checkpoint import store as store_module
from r1jax.checkpoint.store import CheckpointError, Store, resolve
from r1jax.core.errors import UserError


class State(NamedTuple):
  step: jax.Array
  params: dict
  opt: tuple
  ref: dict | None
  key: jax.Array


def make_state(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'run0': {
      'kernel': jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
      'half': jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16),
      'bias': (jnp.asarray(rng.integers(-9, 9, 8), jnp.int8), jnp.asarray([True, False])),
    }
  }
  opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params['run0']['kernel'])
  key = jax.random.key_data(jax.random.key(seed))
  return State(jnp.asarray(7 + seed, jnp.int32), params, opt, None, key)


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def one_line(error):
  text = str(error.value)
  assert '\n' not in text and len(text) < 1000
  return text


@pytest.fixture
def saved(tmp_path):
  """A workdir whose store holds steps 1 and 2."""
  store = Store(tmp_path / 'checkpoints')
  for step in (1, 2):
    store.save(
      step, make_state(step), {'config': {'lr': 0.1}, 'git': 'abc', 'at': step}, block=True
    )
  return store


def test_round_trip_is_bitwise(saved):
  want = make_state(2)
  got = saved.restore(shapes(want))
  assert_same(got, want)
  key = jax.random.wrap_key_data(got.key)
  assert jax.random.bits(key) == jax.random.bits(jax.random.key(2))
  assert_same(saved.restore(shapes(want), step=1), make_state(1))


def test_meta_is_read_without_arrays(saved):
  assert saved.meta() == {'config': {'lr': 0.1}, 'git': 'abc', 'at': 2}
  assert saved.meta(1)['at'] == 1
  for folder in (saved.directory / '2' / 'tree').iterdir():
    folder.rename(folder.parent.parent / folder.name)
  assert saved.meta()['at'] == 2


def test_template_without_shardings_goes_to_the_first_device(saved):
  template = jax.eval_shape(make_state)
  got = saved.restore(template)
  assert_same(got, make_state(2))
  assert all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves(got))


@pytest.mark.parametrize('shape', [(4, 2), (2, 4), (8, 1)])
def test_restores_on_another_mesh(tmp_path, shape):
  auto = (jax.sharding.AxisType.Auto,) * 2
  old = jax.make_mesh((4, 2), ('a', 'b'), axis_types=auto)
  new = jax.make_mesh(shape, ('a', 'b'), axis_types=auto)
  tree = {'w': jnp.arange(64.0).reshape(8, 8), 'n': jnp.asarray(3)}
  spec = {'w': jax.P('a', 'b'), 'n': jax.P()}
  placed = jax.tree.map(lambda x, p: jax.device_put(x, NamedSharding(old, p)), tree, spec)
  store = Store(tmp_path)
  store.save(0, placed, {}, block=True)
  swapped = {'w': jax.P('b', 'a'), 'n': jax.P()}
  template = jax.tree.map(
    lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(new, p)),
    tree,
    swapped,
  )
  got = store.restore(template)
  assert_same(got, tree)
  assert got['w'].sharding == NamedSharding(new, jax.P('b', 'a'))


def test_a_stack_is_stored_by_layer_and_expert(tmp_path, monkeypatch):
  """Nothing smaller than CHUNK, nothing of two axes, and of a sharded stack its shards' parts."""
  monkeypatch.setattr(store_module, 'CHUNK', 4 * 8 * 8)
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  over = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, jax.P(*spec)))
  stack = jnp.arange(4 * 6 * 8 * 8.0)
  tree = {
    'experts': stack.reshape(4, 6, 8, 8),
    'small experts': stack.reshape(4, 6, 16, 4)[..., :3],
    'layers': stack.reshape(6, 4, 8, 8)[:, 0],
    'table': stack.reshape(24, 64),
    'norms': stack.reshape(24, 64)[0],
    'count': jnp.asarray(3),
    'none': None,
    'sharded': over(stack.reshape(4, 3, 16, 8), 'a', None, 'b'),
    'too small a shard': over(stack.reshape(24, 8, 8), None, ('a', 'b')),
  }
  store = Store(tmp_path)
  store.save(0, tree, {}, block=True)
  assert_same(store.restore(shapes(tree)), tree)
  found = ocp.PyTreeCheckpointHandler().metadata(tmp_path / '0' / 'tree').tree
  assert {name: leaf.storage.chunk_shape for name, leaf in found.items() if leaf} == {
    'experts': (1, 1, 8, 8),
    'small experts': (1, 6, 16, 3),
    'layers': (1, 8, 8),
    'table': (24, 64),
    'norms': (64,),
    'count': (),
    'sharded': (1, 1, 8, 8),
    'too small a shard': (24, 1, 8),
  }


def test_part_of_a_tree(saved):
  want = make_state(2)
  got = saved.restore({'params': shapes(want.params)}, partial=True)
  assert_same(got, {'params': want.params})
  with pytest.raises(CheckpointError, match='does not fit'):
    saved.restore({'params': shapes(want.params)})
  with pytest.raises(CheckpointError, match='names no array'):
    saved.restore({}, partial=True)
  with pytest.raises(CheckpointError, match='weights is absent'):
    saved.restore({'weights': want.step}, partial=True)


def test_steps_ascend(saved):
  with pytest.raises(CheckpointError) as error:
    saved.save(2, make_state(), {})
  assert 'holds step 2 already' in one_line(error)


def test_interrupted_save_is_not_latest_and_is_replaced(saved):
  (saved.directory / '2' / 'checkpoint.json').unlink()
  assert saved.steps() == [1] and saved.meta()['at'] == 1
  with pytest.raises(CheckpointError) as error:
    saved.restore(shapes(make_state()), step=2)
  text = one_line(error)
  assert 'step 2' in text and 'interrupted' in text and str(saved.directory) in text
  saved.save(2, make_state(2), {}, block=True)
  assert_same(saved.restore(shapes(make_state(2))), make_state(2))
  (saved.directory / '1' / 'checkpoint.json').unlink()
  saved.save(3, make_state(3), {}, block=True)
  assert sorted(p.name for p in saved.directory.iterdir()) == ['2', '3']


def test_mismatches_are_listed(saved):
  state = make_state()
  other = state._replace(
    params={'run0': {**state.params['run0'], 'kernel': jnp.zeros((8, 5)), 'new': jnp.zeros(1)}},
    step=jnp.asarray(0.0),
    ref={'w': jnp.zeros(2), 'v': jnp.zeros(2)},
  )
  with pytest.raises(CheckpointError) as error:
    saved.restore(shapes(other))
  text = one_line(error)
  assert 'params/run0/kernel is float32[8, 4], asked for float32[8, 5]' in text
  assert 'params/run0/new is absent, asked for float32[1]' in text
  assert 'and 2 more' in text and 'step 2' in text and isinstance(error.value, UserError)


def test_absent_checkpoints(tmp_path, saved):
  with pytest.raises(CheckpointError, match='does not exist'):
    Store(tmp_path / 'nowhere').meta()
  (tmp_path / 'empty').mkdir()
  with pytest.raises(CheckpointError, match='holds none; train first'):
    Store(tmp_path / 'empty').restore({})
  with pytest.raises(CheckpointError, match=r'no complete step 9 .*holds step 1, 2; ask for one'):
    saved.meta(9)


@pytest.mark.parametrize(
  ('leaf', 'match'),
  [
    (3, 'is a int'),
    (np.zeros(2), 'is a ndarray'),
    (jax.random.key(0), 'key_data'),
    (jnp.zeros((0, 3)), 'no elements'),
  ],
)
def test_leaves_that_cannot_be_kept(tmp_path, leaf, match):
  with pytest.raises(CheckpointError, match=match):
    Store(tmp_path).save(0, {'a': leaf}, {})
  assert not any(tmp_path.iterdir())


def test_resolve(saved, tmp_path):
  assert resolve(tmp_path) == (saved.directory, 2)
  assert resolve(saved.directory) == (saved.directory, 2)
  assert resolve(saved.directory / '1') == (saved.directory, 1)
  (saved.directory / '2' / 'checkpoint.json').unlink()
  assert resolve(tmp_path) == (saved.directory, 1)
  with pytest.raises(CheckpointError, match='interrupted'):
    resolve(saved.directory / '2')
  with pytest.raises(CheckpointError, match='check the path'):
    resolve(tmp_path / 'nowhere')
  (tmp_path / 'other').mkdir()
  with pytest.raises(CheckpointError, match='holds none'):
    resolve(tmp_path / 'other')


def test_marker_is_readable_json(saved):
  record = json.loads((saved.directory / '2' / 'checkpoint.json').read_text())
  assert record['arrays']['opt/1/0/mu'] == 'float32[8, 4]'
  assert record['arrays']['params/run0/bias/0'] == 'int8[8]'
  assert record['checksums'].keys() == record['arrays'].keys()
  assert saved.describe() == saved.describe(1) == record['arrays']
