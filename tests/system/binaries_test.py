"""The binaries from outside: what they print, and how they end."""

import signal
import time

import pytest

from r1jax.checkpoint.store import FOLDER, Store


def test_training_shows_its_progress_and_ends_with_a_table(trained):
  workdir, printed, progress = trained
  assert f'tiny: seed 0, stages sft, workdir {workdir}' in printed
  for word in ('accuracy (T=1)', 'after SFT', 'summary.json', 'report.png'):
    assert word in printed
  for word in (
    'sft  compiling sft step',
    'sft  compiling rollout of',
    'sft  4/4  100%',
    'tok/s',
    'loss',
  ):
    assert word in progress
  assert 'Traceback' not in progress and 'Warning' not in progress


def test_generate_prints_completions(trained, binary):
  workdir, *_ = trained
  flags = (f'--checkpoint={workdir}', '--prompt=2 * 3', '--prompt=14 * 15', '--max_tokens=5')
  out = binary('generate', *flags, '--samples=2', '--temperature=1')
  assert out.returncode == 0, out.stderr
  assert out.stdout.count('2 * 3\n') == out.stdout.count('14 * 15\n') == 2


@pytest.mark.slow
def test_an_interrupt_leaves_whole_checkpoints_and_exits_130(binary, tmp_path):
  workdir = tmp_path / 'run'
  config = '--config=tests/system/tiny_config.py:sft'
  many = ('--config.stages[0].steps=100000', '--config.checkpoint.every=1')
  process = binary.start('train', config, f'--workdir={workdir}', *many)
  store, begin = Store(workdir / FOLDER), time.monotonic()
  while process.poll() is None and (store.latest() or 0) < 5 and time.monotonic() - begin < 120:
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130, errors
  assert errors.splitlines()[-1] == 'interrupted' and 'Traceback' not in errors
  for step in store.steps():
    assert store.meta(step)['step'] == step
  out = binary('evaluate', f'--checkpoint={workdir}')
  assert out.returncode == 0, out.stderr
