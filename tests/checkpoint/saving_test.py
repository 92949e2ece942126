"""Asynchronous saving: a consistent snapshot, and no failure that is lost or does harm."""

import asyncio
import errno
import functools
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.checkpoint import marker
from r1jax.checkpoint.errors import CheckpointError
from r1jax.checkpoint.store import Store

TREE = {'x': jnp.arange(6.0).reshape(2, 3), 'n': jnp.asarray(4)}
SHAPES = jax.eval_shape(lambda: TREE)


@pytest.fixture
def gate(monkeypatch):
  """Holds back every marker until it is set."""
  write, held = marker.write, threading.Event()
  monkeypatch.setattr(marker, 'write', lambda *args: held.wait() and write(*args))
  yield held
  held.set()


def test_save_returns_before_the_checkpoint_is_complete(tmp_path, gate):
  store = Store(tmp_path)
  store.save(1, TREE, {'at': 1})
  assert store.steps() == [] and store.latest() is None
  store.poll()
  gate.set()
  store.wait()
  assert store.steps() == [1] and store.meta() == {'at': 1}
  store.wait()


def test_each_save_waits_for_the_one_before(tmp_path):
  with Store(tmp_path) as store:
    for step in (1, 2, 3):
      store.save(step, TREE | {'n': jnp.asarray(step)}, {})
    assert store.restore(SHAPES, 3)['n'] == 3  # and so does a restore
    store.save(4, TREE, {}, block=True)
    assert store.latest() == 4
    with pytest.raises(CheckpointError, match='holds step 4 already'):
      store.save(4, TREE, {})
    store.save(5, TREE, {})
    store.discard(5)
  assert store.steps() == [3, 4]


@pytest.mark.parametrize('sharded', [False, True])
def test_a_donated_update_right_after_save_changes_nothing(tmp_path, sharded):
  """16 MB in 8 arrays: the updates run while the bytes are written."""

  @functools.partial(jax.jit, donate_argnums=0)
  def update(tree):
    return jax.tree.map(lambda x: -x, tree)

  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  place = jax.sharding.NamedSharding(mesh, jax.P('d')) if sharded else jax.devices()[0]
  rng = np.random.default_rng(0)
  first = {f'w{i}': rng.normal(size=(512, 1024)).astype('float32') for i in range(8)}
  tree = jax.device_put(jax.tree.map(jnp.array, first), place)
  jax.block_until_ready(update(jax.tree.map(jnp.copy, tree)))  # compiled
  with Store(tmp_path, keep=4) as store:
    for step in range(4):
      store.save(step, tree, {})
      tree = jax.block_until_ready(update(tree))
    for step in range(4):
      got = store.restore(jax.eval_shape(lambda: first), step)
      assert all(np.array_equal(got[name] * (-1) ** step, first[name]) for name in first)


def test_a_failure_is_raised_once_and_leaves_the_last_one(tmp_path, monkeypatch):
  store = Store(tmp_path)
  store.save(1, TREE, {}, block=True)

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(marker, 'write', full)
  line = (
    f'checkpoint step 2 could not be written to {tmp_path} (No space left on device); free space '
    'and start the same command again; the newest complete checkpoint is step 1'
  )
  for ask in ('wait', 'close', 'poll', 'save'):
    store.save(2, TREE, {})
    with pytest.raises(CheckpointError) as error:
      if ask == 'poll':
        while True:
          store.poll()
      getattr(store, ask)(*([3, TREE, {}] if ask == 'save' else []))
    assert str(error.value) == line
    store.wait()
    assert [path.name for path in tmp_path.iterdir()] == ['1']
  monkeypatch.undo()
  store.save(2, TREE, {}, block=True)
  assert store.steps() == [1, 2]


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
  store = Store(tmp_path)
  monkeypatch.setattr(marker, 'write', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    store.save(3, TREE, {}, block=True)
  with pytest.raises(TypeError):
    store.save(3, TREE, {'f': object()})
  assert store.steps() == []


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError) as error:
    Store(tmp_path / 'file' / 'checkpoints').save(1, TREE, {})
  assert 'step 1 could not be written' in str(error.value) and '(Not a directory)' in str(
    error.value
  )
  assert str(error.value).endswith('none is complete yet')


def test_the_context_keeps_the_exception_of_its_body(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(marker, 'write', refuse)
  with pytest.raises(KeyboardInterrupt), Store(tmp_path) as store:
    store.save(1, TREE, {})
    raise KeyboardInterrupt
  assert '(Permission denied); mend that and start' in caplog.messages[0]
  with pytest.raises(CheckpointError, match='Permission denied'), Store(tmp_path) as store:
    store.save(1, TREE, {})


def test_within_a_running_event_loop(tmp_path):
  """As in a notebook."""

  async def cell():
    with Store(tmp_path) as store:
      store.save(1, TREE, {}, block=True)
      return store.restore(SHAPES)

  assert np.array_equal(asyncio.run(cell())['x'], TREE['x'])


PROGRAM = """
import resource, signal, sys
import numpy as np, jax.numpy as jnp
from r1jax.checkpoint.store import Store
store = Store(sys.argv[1])
tree = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(3, 500, 500)), jnp.float32)}
"""


def run(code, *args):
  command = [sys.executable, '-c', PROGRAM + code, *map(str, args)]
  return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif((3, 12) <= sys.version_info[:3] < (3, 12, 2), reason='gh-113964')
def test_a_program_that_ends_loses_no_save(tmp_path):
  out = run('store.save(1, tree, {})\nstore.wait()\nstore.save(2, tree, {})', tmp_path)
  assert (out.returncode, out.stderr) == (0, '')
  assert Store(tmp_path).steps() == [1, 2]
  shape = {'w': jax.ShapeDtypeStruct((3, 500, 500), 'float32')}
  assert Store(tmp_path).restore(shape)['w'].shape == (3, 500, 500)


FULL = """
store.save(1, {'w': tree['w'][0]}, {}, block=True)
LIMIT
store.save(2, tree, {})
try:
  store.wait()
except Exception as error:
  print(type(error).__name__, error)
store.restore({'w': tree['w'][0]})
"""


def check_full(out, folder, why):
  assert out.returncode == 0, out.stderr
  assert out.stdout == (
    f'CheckpointError checkpoint step 2 could not be written to {folder} ({why}); free space and '
    'start the same command again; the newest complete checkpoint is step 1\n'
  )
  assert 'ERROR:absl' not in out.stderr
  store = Store(folder)
  assert store.steps() == [1] and [path.name for path in store.directory.iterdir()] == ['1']


def test_a_limit_on_file_sizes(tmp_path):
  limit = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
"""
  check_full(run(FULL.replace('LIMIT', limit), tmp_path), tmp_path, 'File too large')


def test_a_full_disk(tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)]
  if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('only root may mount a small disk')
  try:
    check_full(run(FULL.replace('LIMIT', ''), disk), disk, 'No space left on device')
  finally:
    subprocess.run(['umount', str(disk)], check=True)
