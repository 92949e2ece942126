"""A run that is ended at any moment, by anything, ends with the bits of one that was not."""

import contextlib
import json
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.train import telemetry

CONFIG = '--config=tests/system/tiny_config.py'
STEPS = 12
LENGTHS = (f'--config.stages[0].steps={STEPS}', f'--config.stages[1].steps={STEPS}')


def figures(workdir):
  """What the run measured, without clocks."""
  clocks = ('time', 'tokens_per_s', 'data_wait', 'memory')
  rows = telemetry.read(workdir)
  return [{k: v for k, v in r.items() if not k.startswith(clocks)} for r in rows]


def start(binary, workdir, *flags):
  return binary.start('train', CONFIG, f'--workdir={workdir}', *LENGTHS, *flags)


def rows(workdir):
  """(stage, step) of every row written, repeated ones too; a torn line is none."""
  path, found = workdir / telemetry.METRICS, []
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      row = json.loads(line)
      found.append((row['stage'], row['step']))
  return found


def wait_for(process, workdir, stage, step, seconds=120):
  """Until this process has done a step as late as that one."""
  order = {'sft': 0, 'grpo': 1}
  late = lambda row: (order[row[0]], row[1]) >= (order[stage], step)
  before, begin = len(rows(workdir)), time.monotonic()
  while time.monotonic() - begin < seconds:
    if any(map(late, rows(workdir)[before:])):
      return
    if process.poll() is not None:
      pytest.fail(
        f'ended with {process.returncode} before {stage} {step}:\n{process.stderr.read()}'
      )
    time.sleep(0.01)
  pytest.fail(f'{stage} step {step} not reached in {seconds} s')


@pytest.fixture(scope='module')
def whole(binary, tmp_path_factory):
  """The workdir of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  out = binary('train', CONFIG, f'--workdir={workdir}', *LENGTHS)
  assert out.returncode == 0, out.stderr
  return workdir


def finish_equal(binary, arrays, workdir, whole):
  """Starts the run once more, to its end: the same arrays, figures and evaluations."""
  out = binary('train', CONFIG, f'--workdir={workdir}', *LENGTHS)
  assert out.returncode == 0, out.stderr
  (step, mine), (expected_step, expected) = arrays(workdir), arrays(whole)
  assert step == expected_step
  jax.tree.map(np.testing.assert_array_equal, mine, expected)
  assert figures(workdir) == figures(whole)
  evaluations = [json.loads((w / 'evaluations.json').read_text()) for w in (workdir, whole)]
  assert evaluations[0] == evaluations[1]
  return out.stderr


def killed_at(binary, workdir, moments, rng):
  """SIGKILL a moment after each of the steps, each done by the process that is killed."""
  for stage, step in moments:
    process = start(binary, workdir)
    wait_for(process, workdir, stage, step)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f'{stage} {step}: had ended by itself'


@pytest.mark.whole
def test_contract_11_killed_twice_it_ends_with_the_same_bits(binary, arrays, whole, tmp_path):
  killed_at(binary, tmp_path / 'run', [('sft', 5), ('grpo', 7)], random.Random(0))
  told = finish_equal(binary, arrays, tmp_path / 'run', whole)
  assert 'resuming at grpo step' in told


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])
def test_contract_11_twenty_kills_twenty_resumes(binary, arrays, whole, tmp_path, seed):
  """Ten a run, five in each stage."""
  rng = random.Random(seed)
  pick = lambda: sorted(rng.sample(range(1, STEPS - 1), 5))
  moments = [(stage, step) for stage in ('sft', 'grpo') for step in pick()]
  killed_at(binary, tmp_path / 'run', moments, rng)
  finish_equal(binary, arrays, tmp_path / 'run', whole)


@pytest.mark.parametrize(
  ('number', 'stage'),
  [
    pytest.param(signal.SIGTERM, 'grpo', marks=pytest.mark.whole),
    pytest.param(signal.SIGINT, 'sft', marks=pytest.mark.slow),
  ],
)
def test_a_signal_saves_and_stops(binary, arrays, whole, tmp_path, number, stage):
  """At the step it had reached, not at the last periodic checkpoint."""
  workdir = tmp_path / 'run'
  process = start(binary, workdir, '--config.checkpoint.every=1000')
  wait_for(process, workdir, stage, 3)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number, errors
  last = errors.splitlines()[-1]
  assert last.startswith(f'stopped at {stage} step ') and 'the same command goes on' in last
  meta = Store(workdir / FOLDER).meta()
  assert meta['step'] >= 3 and 'Traceback' not in errors
  finish_equal(binary, arrays, workdir, whole)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 2 MB: some checkpoints fit, all do not."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip('mounting a file system needs root')
  yield folder
  subprocess.run(['umount', folder], check=True)


@pytest.mark.whole
def test_a_full_disk_leaves_the_last_good_checkpoint(binary, arrays, whole, small_disk):
  """One line, a bad exit; with more room the same command goes on."""
  workdir = small_disk / 'run'
  keep = '--config.checkpoint.keep=100'
  out = binary('train', CONFIG, f'--workdir={workdir}', *LENGTHS, keep)
  assert out.returncode == 2, out.stderr
  last = out.stderr.splitlines()[-1]
  assert last.startswith('error: ') and 'space' in last, out.stderr
  assert 'Traceback' not in out.stderr, out.stderr
  store = Store(workdir / FOLDER)
  assert store.latest() is not None and f'step {store.latest()}' in last
  subprocess.run(['mount', '-o', 'remount,size=64m', small_disk], check=True)
  finish_equal(binary, arrays, workdir, whole)


@pytest.mark.whole
def test_the_config_of_what_and_not_of_how_must_stay(binary, whole):
  """Another mesh, checkpoint rhythm or number of graders is the same run; another seed is not."""
  same = ('--config.mesh.fsdp=1', '--config.checkpoint.every=7', '--config.verifier.workers=2')
  out = binary('train', CONFIG, f'--workdir={whole}', *LENGTHS, *same)
  assert out.returncode == 0, out.stderr
  out = binary('train', CONFIG, f'--workdir={whole}', *LENGTHS, '--config.seed=1')
  assert out.returncode == 2 and 'config.seed: 0 there, 1 here' in out.stderr
