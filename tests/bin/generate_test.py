"""The flags of r1jax.bin.generate and its user's mistakes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.generate', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_flags():
  out = call('--help')
  flags = ('--checkpoint', '--prompt', '--samples', '--temperature', '--top_p', '--top_k')
  more = ('--max_tokens', '--seed', '--stop', '--think_tokens', '--seconds', '--fallback')
  assert all(flag in out.stdout for flag in (*flags, *more))


def test_a_top_p_outside_its_range_is_one_clear_line(tmp_path):
  out = call(f'--checkpoint={tmp_path}', '--prompt=1', '--top_p=1.5')
  assert (out.returncode, out.stdout) == (2, '')
  assert out.stderr.startswith('error: need temperature ≥ 0, top_k ≥ 0, 0 < top_p ≤ 1')
  assert out.stderr.count('\n') == 1


def test_a_fallback_without_a_budget_and_a_budget_without_sense_are_one_clear_line(tmp_path):
  asked = f'--checkpoint={tmp_path}', '--prompt=1'
  for flags, said in (
    (['--fallback=cut'], 'error: --fallback goes with a budget (--think_tokens, --think_steps'),
    (['--confidence=1.5'], 'error: confidence=1.5; expected a probability above 0'),
    (['--min_p=2'], 'error: need 0 ≤ min_p ≤ 1'),
  ):
    out = call(*asked, *flags)
    assert (out.returncode, out.stdout, out.stderr.count('\n')) == (2, '', 1)
    assert out.stderr.startswith(said)
