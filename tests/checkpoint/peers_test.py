"""Two processes save, fail, restore and discard as one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.checkpoint import checksum, peers
from r1jax.checkpoint.errors import CheckpointError
from r1jax.checkpoint.store import Store

WORKER = pathlib.Path(__file__).parent / 'workers' / 'two.py'


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """(folder, what each of the two processes said)."""
  folder = tmp_path_factory.mktemp('pair')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  workers = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(port), str(i), str(folder)],
      env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    outs = [worker.communicate(timeout=120) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert [worker.returncode for worker in workers] == [0, 0], '\n'.join(e for _, e in outs)
  return folder, [json.loads(out.splitlines()[-1]) for out, _ in outs]


def test_both_processes_agree(pair):
  _, said = pair
  assert said[0]['steps'] == said[1]['steps'] == [1, 2]
  assert said[0]['left'] == said[1]['left'] == [1, 2]
  assert said[0]['whole'] == said[1]['whole'] == [True, True]
  assert said[0]['discarded'] == said[1]['discarded'] == [[1], True]
  assert said[0]['peers'] == said[1]['peers'] == 'nothing was wrong'


@pytest.mark.parametrize(('what', 'where'), [('arrays', 1), ('marker', 0)])
def test_a_write_that_fails_on_one_process_fails_on_both(pair, what, where):
  folder, said = pair
  line = (
    f'CheckpointError: checkpoint step 3 could not be written to {folder} (%sNo space left on '
    'device); free space and start the same command again; the newest complete checkpoint is step 2'
  )
  assert said[where][what] == line % ''
  assert said[1 - where][what] == line % f'process {where}: '


def test_a_failed_save_is_raised_by_the_next_one_on_both(pair):
  """At the same call: neither goes on into a meeting to which the other never comes."""
  _, said = pair
  for i in range(2):
    assert said[i]['next'].startswith('CheckpointError: checkpoint step 3 could not be written')
    assert said[i]['after'] == 'nothing was wrong'


def test_an_old_step_that_cannot_be_removed_stops_both(pair):
  folder, said = pair
  line = (
    f'old checkpoint {folder}/old/1 cannot be removed (No space left on device); mend that and '
    'start the same command again; the newest complete checkpoint is step 2'
  )
  assert said[0]['old'] == f'CheckpointError: {line}'
  assert said[1]['old'] == f'CheckpointError: process 0: {line}'


def test_damage_that_one_process_finds_is_damage_for_both(pair):
  _, said = pair
  assert said[1]['damaged'].startswith('Damaged: checkpoint step 2')
  assert said[0]['damaged'] == f'Damaged: process 1: {said[1]["damaged"].removeprefix("Damaged: ")}'


def test_one_process_reads_what_two_wrote(pair):
  """On another mesh, with the same checksums; the save in flight at the end was completed."""
  folder, said = pair
  store = Store(folder)
  assert store.steps() == [1, 4] and store.meta() == {'at': 4}
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.NamedSharding(mesh, jax.P('d'))
  want = np.arange(96, dtype='float32').reshape(16, 6)
  shapes = {
    'w': jax.ShapeDtypeStruct((16, 6), 'float32', sharding=over),
    'n': jax.ShapeDtypeStruct((), 'int32'),
  }
  for step in (1, 4):
    got = store.restore(shapes, step)
    assert np.array_equal(got['w'], want + step) and got['n'] == step
  sums = checksum.start([jnp.asarray(want + 2), jnp.asarray(2, jnp.int32)])()
  assert said[0]['sums'] == said[1]['sums'] == sums


class Service:
  """A client of the coordination service whose meetings end in `error`."""

  def __init__(self, error=None):
    self.error, self.waits = error, []

  def key_value_set(self, key, value):
    pass

  def key_value_dir_get(self, key):
    return []

  def wait_at_barrier(self, name, timeout_ms):
    self.waits.append(timeout_ms)
    if self.error:
      raise self.error


@pytest.fixture
def service(monkeypatch):
  """That of two processes, of which this is one."""
  made = Service()
  monkeypatch.setattr(peers.processes, 'count', lambda: 2)
  monkeypatch.setattr(peers.distributed.global_state, 'client', made)
  return made


@pytest.mark.parametrize('home', ['wait_at_barrier', 'key_value_set'])
def test_what_went_wrong_here_is_raised_whatever_becomes_of_the_meeting(service, monkeypatch, home):
  def late(*_):
    raise RuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr(service, home, late)
  with pytest.raises(CheckpointError, match=r'^cut short$'):
    peers.together('', lambda: (_ for _ in ()).throw(CheckpointError('cut short')))


def test_who_is_done_waits_for_weeks_and_says_how_it_ended(service):
  assert peers.together('', lambda: 3) == 3
  assert 14 * 24 * 3_600_000 <= service.waits[0] < 2**31
  service.error = RuntimeError('a process died')
  with pytest.raises(RuntimeError, match='a process died'):
    peers.together('', lambda: 3)


def test_one_process_meets_nobody():
  assert peers.meeting() == ''
  assert peers.together('', lambda: 3) == 3
  with pytest.raises(CheckpointError, match=r'^as it was$'):
    peers.together('', lambda: (_ for _ in ()).throw(CheckpointError('as it was')))
