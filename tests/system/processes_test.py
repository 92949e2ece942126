"""The same config as one, two and four processes, and from one of them to another."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.train import telemetry

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '--config=tests/system/tiny_config.py'
MESH = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.expert=2')


def port():
  """A free one."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def spawn(count, workdir, *flags, extra=(), devices=8):
  """`count` processes that share `devices` virtual devices; their (code, stdout, stderr)."""
  address = f'--coordinator=127.0.0.1:{port()}'
  env = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  env['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  running = []
  for i in range(count):
    command = [sys.executable, '-m', 'r1jax.bin.train', CONFIG, f'--workdir={workdir}', *flags]
    command += [f'--local_devices={devices // count}']
    if count > 1:
      command += [address, f'--processes={count}', f'--process={i}']
    command += extra[i] if extra else ()
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    running.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
  ended = [p.communicate(timeout=400) for p in running]
  return [(p.returncode, out, errors) for p, (out, errors) in zip(running, ended)]


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


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_match_one(one, arrays, tmp_path, count):
  """SFT and GRPO, sampled, graded and evaluated by all of them; process 0 writes and talks."""
  done = spawn(count, tmp_path / 'run', *MESH)
  check_ended(done)
  assert all(
    not errors.count('tok/s') and not out.count('after SFT') for _, out, errors in done[1:]
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    arrays(tmp_path / 'run')[1]['params'],
    arrays(one)[1]['params'],
  )
  for mine, expected in zip(losses(tmp_path / 'run'), losses(one), strict=True):
    assert mine[:2] == expected[:2]
    np.testing.assert_allclose(mine[2:], expected[2:], rtol=0, atol=1e-5)
  read = lambda w: json.loads((w / 'evaluations.json').read_text())
  assert [e['correct'] for e in read(tmp_path / 'run')] == [e['correct'] for e in read(one)]


def test_a_checkpoint_moves_to_another_mesh_and_process_count(one, tmp_path):
  """Two processes begin on eight devices, one goes on with four, to the same losses."""
  workdir = tmp_path / 'run'
  half = ('--config.stages[1].steps=4',)
  check_ended(spawn(2, workdir, *MESH, *half))
  for step in Store(workdir / FOLDER).steps():
    if step > 6:  # as if it had ended in the middle of GRPO
      (workdir / FOLDER / str(step) / 'checkpoint.json').unlink()
  other = ('--config.mesh.data=1', '--config.mesh.fsdp=2', '--config.mesh.expert=1')
  done = spawn(1, workdir, *other, '--config.mesh.tensor=2', devices=4)
  check_ended(done)
  assert 'resuming at grpo step 2' in done[0][2]
  for mine, expected in zip(losses(workdir), losses(one), strict=True):
    np.testing.assert_allclose(mine[2:], expected[2:], rtol=0, atol=1e-5)


def test_processes_that_disagree_stop_with_one_line(tmp_path):
  extra = ((), ('--config.seed=1',))
  done = spawn(2, tmp_path / 'run', *MESH, extra=extra)
  lines = {errors.splitlines()[-1] for _, _, errors in done}
  assert [code for code, _, _ in done] == [2, 2], done
  assert len(lines) == 1 and 'process 1 has another config' in lines.pop()
  assert not (tmp_path / 'run').exists()
