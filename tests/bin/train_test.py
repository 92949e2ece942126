"""The flags of r1jax.bin.train and its user's mistakes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.train', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_flags():
  out = call('--help')
  assert '--config' in out.stdout and '--workdir' in out.stdout


def test_a_mistyped_override_is_one_line_and_leaves_no_workdir(tmp_path):
  workdir = tmp_path / 'run'
  out = call('--config=configs/quickstart.py', f'--workdir={workdir}', '--config.model.embd=3')
  assert (out.returncode, out.stdout) == (2, '')
  assert out.stderr.startswith(
    "error: config.model: ModelConfig has no field 'embd'; did you mean 'embed'?"
  )
  assert out.stderr.count('\n') == 1
  assert not workdir.exists()
