"""The flags of r1jax.bin.convert and its user's mistakes; what it makes is in train/converted."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.convert', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_flags():
  out = call('--help')
  flags = ('--source', '--target', '--to', '--dtype', '--workers', '--coordinator')
  assert all(flag in out.stdout for flag in flags)


def test_mistakes_are_one_clear_line(tmp_path):
  target = f'--target={tmp_path / "out"}'
  for source, said in (
    (tmp_path / 'nowhere', 'is no folder of safetensors and no .gguf file; check --source'),
    (tmp_path, 'config.json does not exist; a public checkpoint has one beside its weights'),
    ('package:no_such_package', "no package 'no_such_package' is installed"),
  ):
    out = call(f'--source={source}', target)
    assert (out.returncode, out.stdout) == (2, '')
    assert out.stderr.startswith('error: ') and said in out.stderr
    assert out.stderr.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_flags_that_would_be_ignored_are_refused(tmp_path):
  places = (f'--source={tmp_path}', f'--target={tmp_path / "out"}')
  for more, said in (
    (('--dtype=bfloat16',), '--dtype goes with --to=safetensors'),
    (('--to=safetensors', '--processes=2'), '--to=safetensors is the work of one process'),
    (('--to=safetensors', '--workers=2'), '--workers goes with --to=r1jax'),
  ):
    out = call(*places, *more)
    assert out.returncode == 2 and said in out.stderr


def test_a_bucket_is_refused_as_a_target(tmp_path):
  for to in ('r1jax', 'safetensors'):
    out = call(f'--source={tmp_path}', '--target=gs://bucket/model', f'--to={to}')
    assert (out.returncode, out.stderr) == (
      2,
      'error: --target=gs://bucket/model is no local folder; convert to one and copy it there '
      'afterwards\n',
    )
