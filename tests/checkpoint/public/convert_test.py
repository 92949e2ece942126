"""A conversion: what it writes, what it holds in memory, how it goes on, what it refuses."""

import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax.checkpoint import checksum, leaves, marker
from r1jax.checkpoint.errors import CheckpointError, Damaged
from r1jax.checkpoint.public import chunks, convert, manifest, target, writer
from r1jax.checkpoint.public.convert import convert as run
from r1jax.checkpoint.store import Store
from r1jax.core.errors import UserError

WORKERS = pathlib.Path(__file__).parent / 'workers'
sys.path.insert(0, str(WORKERS))
import fake  # noqa: E402

SOURCE = {'model.safetensors': [100, 1, 2]}
NAME = 'conversion.0.json'


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Limits at which the fake's arrays are cut, and committed in many batches."""
  fake.limits(monkeypatch.setattr)


@pytest.fixture
def weights():
  return fake.Fake()


def template(weights, mesh=None):
  """What a restore asks for; with a mesh, first axes spread over it where they divide."""
  placed = {}
  for name, leaf in weights.leaves.items():
    spread = mesh and leaf.shape and leaf.shape[0] % mesh.size == 0
    spec = jax.P('a') if spread else jax.P()
    sharding = mesh and jax.sharding.NamedSharding(mesh, spec)
    placed[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return {'params': convert.tree(placed, placed.get)}


def assert_restores(folder, weights, mesh=None):
  got = leaves.named(Store(folder / 'checkpoints').restore(template(weights, mesh), 0))
  assert got.keys() == {f'params/{name}' for name in weights.values}
  for name, want in weights.values.items():
    found = np.asarray(got[f'params/{name}'])
    assert found.dtype == want.dtype and np.array_equal(found, want), name


@pytest.mark.parametrize('workers', [1, 3])
def test_the_store_restores_what_was_read(tmp_path, weights, workers):
  run(weights, tmp_path / 'new' / 'out', {'x': 1}, source=SOURCE, workers=workers)
  out = tmp_path / 'new' / 'out'
  assert_restores(out, weights)
  mesh = jax.make_mesh((8,), ('a',), axis_types=(jax.sharding.AxisType.Auto,))
  assert_restores(out, weights, mesh)
  assert os.listdir(out) == ['checkpoints'] and os.listdir(out / 'checkpoints') == ['0']
  store = Store(out / 'checkpoints')
  assert store.steps() == [0] and store.meta() == {'x': 1}
  assert store.describe() == leaves.describe(template(weights))
  assert store.describe()['params/run0/block0/mlp/gate'] == 'bfloat16[4, 3, 12, 16]'


def test_the_marker_holds_the_checksums_of_whole_arrays(tmp_path, weights):
  run(weights, tmp_path, {}, source=SOURCE)
  record = json.loads((tmp_path / 'checkpoints' / '0' / 'checkpoint.json').read_text())
  arrays = {f'params/{name}': jnp.asarray(x) for name, x in weights.values.items()}
  sums = checksum.start(list(arrays.values()))()
  assert record['checksums'] == dict(zip(arrays, sums))


def test_orbax_takes_them_for_arrays_of_its_own(tmp_path, weights):
  """Pins what is Orbax's and not documented: names of folders and arrays, the kind of a leaf."""
  run(weights, tmp_path, {}, source=SOURCE)
  tree = tmp_path / 'checkpoints' / '0' / 'tree'
  found = leaves.named(ocp.PyTreeCheckpointHandler().metadata(tree).tree)
  kinds = json.loads((tree / '_METADATA').read_text())['tree_metadata'].values()
  assert {kind['value_metadata']['value_type'] for kind in kinds} == {'jax.Array'}
  gate = found['params/run0/block0/mlp/gate']
  assert (gate.name, gate.shape, gate.dtype) == (
    'params.run0.block0.mlp.gate', (4, 3, 12, 16), ml_dtypes.bfloat16
  )  # fmt: skip
  assert gate.storage.chunk_shape == (1, 1, 12, 16)  # one layer, one expert
  assert [p.name for p in sorted(tree.glob('ocdbt*'))] == [
    'ocdbt.process_0w0', 'ocdbt.process_0w1'
  ]  # fmt: skip


def test_no_chunk_is_read_twice_and_few_are_in_memory(tmp_path, weights, monkeypatch):
  """A chunk is held from put() on until it is durable: FLYING bytes a worker, and the newest."""
  flying = 1000
  monkeypatch.setattr(writer, 'FLYING', flying)
  held, peaks = {}, []

  class Counted(writer.Writer):
    def __init__(self, tree, who, arrays, grids, durable):
      def landed(chunk, part):
        held[who] -= chunk.nbytes
        durable(chunk, part)

      super().__init__(tree, who, arrays, grids, landed)
      self.who, held[who] = who, 0

    def put(self, chunk, x, part):
      held[self.who] += chunk.nbytes
      peaks.append(held[self.who])
      super().put(chunk, x, part)

  monkeypatch.setattr(writer, 'Writer', Counted)
  run(weights, tmp_path, {}, source=SOURCE, workers=2, verify=False)
  assert len(held) == 2 and set(held.values()) == {0}
  assert flying < max(peaks) <= flying + chunks.CAP
  assert sum(x.nbytes for x in weights.values.values()) > 4 * max(peaks)
  assert len(weights.reads) == len(set(map(str, weights.reads))) == len(peaks)


def test_progress(tmp_path, weights):
  said, total = [], sum(x.nbytes for x in weights.values.values())
  run(weights, tmp_path, {}, source=SOURCE, say=said.append)
  for what in ('written', 'verified'):
    bytes_done = [p.done for p in said if p.what == what]
    assert bytes_done[0] == 0 and bytes_done[-1] == total == said[-1].total
    assert bytes_done == sorted(bytes_done) and len(bytes_done) > 30


# Interrupted.


def kill_part_way(folder, after=6):
  """Starts a conversion and kills it once the manifest names so many chunks."""
  process = subprocess.Popen([sys.executable, str(WORKERS / 'slow.py'), str(folder)])
  try:
    while noted(folder) < after:
      assert process.poll() is None
      time.sleep(0.02)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()


def noted(folder):
  path = folder / NAME
  return sum(map(len, json.loads(path.read_text())['done'].values())) if path.exists() else 0


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, weights):
  kill_part_way(tmp_path)
  every = sum(1 for _ in fake.every_chunk(weights))
  done = noted(tmp_path)
  assert 6 <= done < every
  with pytest.raises(CheckpointError, match='no complete checkpoint'):
    Store(tmp_path / 'checkpoints').restore(template(weights))
  said = []
  run(weights, tmp_path, {}, source=SOURCE, workers=3, say=said.append)
  assert len(weights.reads) == every - done
  assert said[0].done > 0 and said[0].total == sum(x.nbytes for x in weights.values.values())
  assert_restores(tmp_path, weights)
  run(weights, tmp_path / 'whole', {}, source=SOURCE)
  marks = [p / 'checkpoints/0/checkpoint.json' for p in (tmp_path, tmp_path / 'whole')]
  first, second = (json.loads(mark.read_text()) for mark in marks)
  assert first['checksums'] == second['checksums']


def flip(folder, values):
  """Flips a bit of the first data file that holds these bytes."""
  for path in sorted((folder / 'checkpoints' / '0' / 'tree').glob('ocdbt*/d/*')):
    data = bytearray(path.read_bytes())
    if (at := data.find(values.tobytes())) >= 0:
      data[at + 5] ^= 4
      path.write_bytes(data)
      return
  raise AssertionError('no file holds these bytes')


def damaged_before_the_end(folder, weights, harm):
  """The line that a conversion ends with when its files are harmed before they are read back."""

  def say(now):
    if now.what == 'verified' and now.done == 0:
      harm()

  with pytest.raises(CheckpointError) as error:
    run(weights, folder, {}, source=SOURCE, workers=1, say=say)
  assert Store(folder / 'checkpoints').steps() == []
  return str(error.value)


def test_a_byte_that_flips_before_the_end_is_found_and_named(tmp_path, weights):
  harm = lambda: flip(tmp_path, weights.values['embedding'][20:40])
  assert damaged_before_the_end(tmp_path, weights, harm) == (
    f'params/embedding[20:40, 0:10] in {tmp_path} is damaged (its bytes are not those that were '
    'written); check the disk, remove the folder and start the same command again'
  )


def test_an_index_that_is_damaged_before_the_end(tmp_path, weights):
  def harm():
    (path,) = (tmp_path / 'checkpoints' / '0' / 'tree' / 'd').iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

  assert damaged_before_the_end(tmp_path, weights, harm).startswith(
    f'params/embedding[0:20, 0:10] in {tmp_path} is damaged (ValueError: DATA_LOSS: '
  )


def test_a_byte_that_flips_later_is_found_by_the_store(tmp_path, weights, monkeypatch):
  monkeypatch.setattr(marker, 'SMALL', 200)  # as in large files, whose digests are not kept
  run(weights, tmp_path, {}, source=SOURCE)
  flip(tmp_path, weights.values['run0/block0/mlp/gate'][2, 1])
  with pytest.raises(Damaged, match='bytes of params/run0/block0/mlp/gate have changed'):
    assert_restores(tmp_path, weights)


def test_a_read_that_fails_ends_it_and_can_be_mended(tmp_path, weights):
  read, broken = weights.read, UserError("model.safetensors: tensor 'a' is cut short")

  def failing(path, index):
    if path == 'run0/block0/mlp/gate' and index[0].start == 2:
      raise broken
    return read(path, index)

  weights.read = failing
  with pytest.raises(UserError) as error:
    run(weights, tmp_path, {}, source=SOURCE)
  assert error.value is broken
  weights.read = read
  run(weights, tmp_path, {}, source=SOURCE)
  assert_restores(tmp_path, weights)


def test_a_source_that_does_not_answer(tmp_path, weights):
  def failing(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  weights.read = failing
  with pytest.raises(UserError) as error:
    run(weights, tmp_path, {}, source=SOURCE, workers=1)
  assert str(error.value) == (
    'params/embedding could not be read from the source (Input/output error); mend that and start '
    'the same command again: it goes on from here'
  )


def test_a_full_disk(tmp_path, weights):
  """One line; and with room again the same command goes on."""
  code = WORKERS / 'slow.py'
  out = subprocess.run(
    [sys.executable, str(code), str(tmp_path), 'limit'], capture_output=True, text=True
  )
  assert out.stdout == (
    f'CheckpointError: {tmp_path} could not be written (File too large); free space and start the '
    'same command again: it goes on from here\n'
  ), out.stderr
  assert 'Traceback' not in out.stderr
  run(weights, tmp_path, {}, source=SOURCE)
  assert_restores(tmp_path, weights)


# Refused.


def test_another_source_or_model_does_not_go_on(tmp_path, weights):
  kill_part_way(tmp_path, 1)
  other = {'model.safetensors': [100, 1, 3]}
  with pytest.raises(CheckpointError) as error:
    run(weights, tmp_path, {}, source=other)
  assert str(error.value) == (
    f'{tmp_path} holds an unfinished conversion of something else (source: model.safetensors was '
    '[100, 1, 2], is [100, 1, 3]); remove it or give another target'
  )
  del weights.leaves['embedding']
  with pytest.raises(
    CheckpointError, match=r'arrays: params/embedding was bfloat16\[40, 10\], is '
  ):
    run(weights, tmp_path, {}, source=SOURCE)
  assert weights.reads == []


def test_a_target_that_is_taken(tmp_path, weights):
  run(weights, tmp_path / 'a', {}, source=SOURCE)
  with pytest.raises(CheckpointError) as error:
    run(weights, tmp_path / 'a', {}, source=SOURCE)
  assert str(error.value) == (
    f'{tmp_path}/a already holds a checkpoint (step 0); remove it or give another target'
  )
  for path in ('b/notes.txt', 'c/checkpoints/0/tree/x', 'd/tokenizer.json'):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text('')
  for name, held in {'b': 'notes.txt', 'c': 'checkpoints', 'd': 'tokenizer.json'}.items():
    with pytest.raises(CheckpointError) as error:
      run(weights, tmp_path / name, {}, source=SOURCE)
    assert str(error.value) == (
      f'{tmp_path}/{name} is not empty (it holds {held}); empty it or give another target'
    )
  run(weights, tmp_path / 'd', {}, source=SOURCE, beside=('tokenizer.json', 'other.json'))
  assert sorted(os.listdir(tmp_path / 'd')) == ['checkpoints', 'tokenizer.json']


def test_a_manifest_that_is_damaged(tmp_path, weights):
  """With another beside it is removed alone; the last one goes with what it told of."""
  kill_part_way(tmp_path, 1)
  whole = (tmp_path / NAME).read_text()

  def refused(text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError) as error:
      run(weights, tmp_path, {}, source=SOURCE)
    assert '\n' not in str(error.value)
    assert str(error.value).startswith(f'{tmp_path / NAME} is damaged (')
    return str(error.value)

  for text in ('', whole[:50], '{}', '[]', '{"done": 3}'):
    assert refused(text).endswith(f'; remove {tmp_path}: all is converted again')
  (tmp_path / 'conversion.1.json').write_text(whole)
  assert refused('{}').endswith('; remove it: its chunks are converted again')
  assert weights.reads == []
  (tmp_path / NAME).unlink()
  run(weights, tmp_path, {}, source=SOURCE)
  assert_restores(tmp_path, weights)


def test_a_target_that_is_no_folder(tmp_path, weights):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(CheckpointError) as error:
      run(weights, path, {}, source=SOURCE)
    assert str(error.value) == (
      f'{path} could not be written (Not a directory); mend that and start the same command again: '
      'it goes on from here'
    )


def test_what_is_brought_comes_after_all_that_is_refused(tmp_path, weights, monkeypatch):
  bring = lambda: (tmp_path / 'out' / 'public').mkdir()
  go = lambda: run(weights, tmp_path / 'out', {}, source=SOURCE, beside=('public',), bring=bring)
  with monkeypatch.context() as patch:
    patch.setattr(target.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match='GiB are free'):
      go()
  assert not (tmp_path / 'out').exists()
  go()
  assert sorted(os.listdir(tmp_path / 'out')) == ['checkpoints', 'public']


def test_a_disk_that_is_too_small(tmp_path, weights, monkeypatch):
  monkeypatch.setattr(target.shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1000))
  with pytest.raises(UserError) as error:
    run(weights, tmp_path / 'out', {}, source=SOURCE)
  assert str(error.value) == (
    f'{tmp_path}/out needs 0.0 GiB, 0.0 GiB are free; free space or give a target on another disk'
  )
  assert not (tmp_path / 'out').exists()


def test_what_a_checkpoint_cannot_hold(tmp_path, weights):
  with pytest.raises(TypeError, match='JSON'):
    run(weights, tmp_path / 'out', {'x': object()}, source=SOURCE)
  weights.leaves['embedding'] = jax.ShapeDtypeStruct((20, 10), np.float64)
  with pytest.raises(UserError, match='params/embedding is float64, which jax does not hold'):
    run(weights, tmp_path / 'out', {}, source=SOURCE)
  assert not (tmp_path / 'out').exists()


def test_a_reader_that_gives_something_else_is_a_bug(tmp_path, weights):
  weights.read = lambda path, index: np.zeros((1, 2), np.float32)
  with pytest.raises(ValueError, match=r'was read as float32\[1, 2\]'):
    run(weights, tmp_path, {}, source=SOURCE)


def test_fingerprint(tmp_path):
  names = ('config.json', 'model.safetensors', 'absent.json')
  (tmp_path / 'config.json').write_bytes(b'{}')
  big = bytearray(3 << 20)
  (tmp_path / 'model.safetensors').write_bytes(big)
  of = lambda *names: manifest.fingerprint(tmp_path / name for name in names)
  before = of(*names)
  assert before['config.json'][0] == 2 and before.keys() == {'config.json', 'model.safetensors'}
  assert of('config.json') == {'config.json': before['config.json']}
  (tmp_path / 'unrelated.txt').write_bytes(b'x')
  assert of(*names) == before
  for at in (0, -1):
    big[at] ^= 1
    (tmp_path / 'model.safetensors').write_bytes(big)
    assert of(*names) != before
    big[at] ^= 1


# Two processes.


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """(folder, what each of two processes said)."""
  folder = tmp_path_factory.mktemp('pair')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  running = [
    subprocess.Popen(
      [sys.executable, str(WORKERS / 'two.py'), str(port), str(i), str(folder)],
      env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    outs = [process.communicate(timeout=120) for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0, 0], '\n'.join(e for _, e in outs)
  return folder, [json.loads(out.splitlines()[-1]) for out, _ in outs]


def test_two_processes_read_and_write_a_part_each(pair, weights):
  folder, said = pair
  every = [[c.leaf, c.number] for c in fake.every_chunk(weights)]
  assert said[0]['read'] + said[1]['read'] == every
  assert abs(len(said[0]['read']) - len(said[1]['read'])) < len(every) / 3
  assert_restores(folder / 'out', weights)
  found = (folder / 'out' / 'checkpoints' / '0' / 'tree').glob('ocdbt*')
  assert {p.name for p in found} == {f'ocdbt.process_{i}w0' for i in range(2)}


def test_what_one_process_cannot_read_stops_both(pair, weights):
  _, said = pair
  assert said[0]['failed'] == 'CheckpointError: process 1: model-2.safetensors is cut short'
  assert said[1]['failed'] == 'UserError: model-2.safetensors is cut short'


def test_what_two_processes_began_one_can_end(pair, weights):
  folder, _ = pair
  notes = [json.loads((folder / 'part' / f'conversion.{i}.json').read_text()) for i in range(2)]
  done = [sum(map(len, note['done'].values())) for note in notes]
  assert min(done) > 0
  run(weights, folder / 'part', {}, source=SOURCE)
  assert len(weights.reads) == sum(1 for _ in fake.every_chunk(weights)) - sum(done)
  assert_restores(folder / 'part', weights)
