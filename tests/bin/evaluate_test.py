"""The flags of r1jax.bin.evaluate and its user's mistakes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.evaluate', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_flags():
  out = call('--help')
  assert all(flag in out.stdout for flag in ('--checkpoint', '--out', '--show'))


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
  out = call(f'--checkpoint={tmp_path / "nowhere"}')
  assert (out.returncode, out.stdout) == (2, '')
  said = f'error: no checkpoint at {tmp_path / "nowhere"}: it does not exist; check the path\n'
  assert out.stderr == said
