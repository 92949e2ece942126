"""The same config as one, two and four processes, and from one of them to another."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.train import telemetry
from tests.processes import environment

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '--config=tests/system/tiny_config.py'
MESH = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.expert=2')


def port():
  """A free one."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(count, workdir, *flags, extra=(), devices=8):
  """`count` processes that share `devices` virtual devices."""
  address = f'--coordinator=127.0.0.1:{port()}'
  running = []
  for i in range(count):
    command = [sys.executable, '-m', 'r1jax.bin.train', CONFIG, f'--workdir={workdir}', *flags]
    command += [f'--local_devices={devices // count}']
    if count > 1:
      command += [address, f'--processes={count}', f'--process={i}']
    command += extra[i] if extra else ()
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    running.append(subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes))
  return running


def ended(running):
  """(code, stdout, stderr) of each."""
  said = [process.communicate(timeout=400) for process in running]
  return [(process.returncode, *texts) for process, texts in zip(running, said)]


def spawn(count, workdir, *flags, **options):
  """The processes, ended."""
  return ended(start(count, workdir, *flags, **options))


def losses(workdir):
  """(stage, step, loss, reward) of every row."""
  return [(r['stage'], r['step'], r['loss'], r.get('reward', 0.0)) for r in telemetry.read(workdir)]


def check_ended(done):
  for code, _, errors in done:
    assert code == 0, errors[-3000:]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The workdir of the run as one process with eight devices."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  check_ended(spawn(1, workdir, *MESH))
  return workdir


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """The same as two processes with four devices each, continuous batches: workdir, how it ended."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  return workdir, spawn(2, workdir, *MESH, '--config.engine.type=Paged')


def check_match(arrays, workdir, done, one):
  """Parameters, losses and evaluations as of one process; process 0 alone wrote and talked."""
  check_ended(done)
  assert 'after SFT' in done[0][1] and 'tok/s' in done[0][2]
  assert not any('tok/s' in errors or 'after SFT' in out for _, out, errors in done[1:])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  jax.tree.map(close, arrays(workdir)[1]['params'], arrays(one)[1]['params'])
  check_losses(workdir, one)
  read = lambda w: json.loads((w / 'evaluations.json').read_text())
  assert [e['correct'] for e in read(workdir)] == [e['correct'] for e in read(one)]


def check_losses(workdir, one):
  for mine, expected in zip(losses(workdir), losses(one), strict=True):
    assert mine[:2] == expected[:2]
    np.testing.assert_allclose(mine[2:], expected[2:], rtol=0, atol=1e-5)


@pytest.mark.whole
def test_two_processes_match_one(one, two, arrays):
  """SFT and GRPO, sampled, graded and evaluated by both."""
  check_match(arrays, *two, one)


@pytest.mark.slow
def test_four_processes_match_one(one, arrays, tmp_path):
  check_match(arrays, tmp_path / 'run', spawn(4, tmp_path / 'run', *MESH), one)


@pytest.mark.whole
def test_a_checkpoint_moves_to_another_mesh_and_process_count(one, two, tmp_path):
  """Begun by two processes on eight devices, ended by one on four, with the same losses."""
  workdir = tmp_path / 'run'
  shutil.copytree(two[0], workdir)
  for step in Store(workdir / FOLDER).steps():
    if step > 6:  # as if it had ended in the middle of GRPO
      shutil.rmtree(workdir / FOLDER / str(step))
  rows = (workdir / telemetry.METRICS).read_text().splitlines(True)
  known = [r for r in rows if '"grpo"' not in r or json.loads(r)['step'] <= 2]
  (workdir / telemetry.METRICS).write_text(''.join(known))
  mesh = ('--config.mesh.fsdp=2', '--config.mesh.expert=2')
  done = spawn(1, workdir, *mesh, devices=4)
  check_ended(done)
  assert 'resuming at grpo step 2' in done[0][2]
  check_losses(workdir, one)


@pytest.mark.slow
def test_preemption_of_one_process_stops_both_at_the_same_step(one, tmp_path):
  """SIGTERM to the second of two: both save, exit alike, and go on together."""
  workdir, begin = tmp_path / 'run', time.monotonic()
  running = start(2, workdir, *MESH, '--config.checkpoint.every=1000')
  while not any(r['stage'] == 'grpo' for r in telemetry.read(workdir)):
    assert time.monotonic() - begin < 300 and running[0].poll() is None
    time.sleep(0.05)
  running[1].send_signal(signal.SIGTERM)
  done = ended(running)
  assert [code for code, _, _ in done] == [143, 143], done
  assert 'stopped at grpo step' in done[0][2] and 'stopped' not in done[1][2]
  done = spawn(2, workdir, *MESH)
  check_ended(done)
  assert 'resuming at grpo step' in done[0][2]
  check_losses(workdir, one)


def test_processes_that_disagree_stop_with_one_line(tmp_path):
  extra = ((), ('--config.seed=1',))
  done = spawn(2, tmp_path / 'run', *MESH, extra=extra)
  lines = {errors.splitlines()[-1] for _, _, errors in done}
  assert [code for code, _, _ in done] == [2, 2], done
  assert len(lines) == 1 and 'process 1 has another config' in lines.pop()
  assert not (tmp_path / 'run').exists()
