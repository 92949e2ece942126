"""The flags of r1jax.bin.evaluate and its user's mistakes."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

from r1jax.core.errors import UserError
from r1jax.tokenizers.make import Public
from r1jax.train import restored

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.evaluate', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_the_flags():
  out = call('--help')
  assert all(
    flag in out.stdout for flag in ('--checkpoint', '--out', '--show', '--lm_eval_context')
  )


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
  out = call(f'--checkpoint={tmp_path / "nowhere"}')
  assert (out.returncode, out.stdout) == (2, '')
  said = f'error: no checkpoint at {tmp_path / "nowhere"}: it does not exist; check the path\n'
  assert out.stderr == said


@pytest.mark.parametrize(
  'given, said',
  [
    (['--lm_eval_limit=3'], '--lm_eval_limit goes with --lm_eval; give its tasks, or leave it out'),
    (['--lm_eval_folder=x'], '--lm_eval_folder goes with --lm_eval; '),
    (['--lm_eval_chat'], '--lm_eval_chat goes with --lm_eval; '),
    (
      ['--lm_eval=a', '--config=x.py'],
      '--config does not go with --lm_eval; leave one of them out',
    ),
    (['--lm_eval=a', '--show=3'], '--show does not go with --lm_eval; '),
    (['--lm_eval='], '--lm_eval names no task; give some, such as --lm_eval=arc_easy,gsm8k'),
    (['--lm_eval=a', '--lm_eval_limit=0'], 'flag --lm_eval_limit=0: 0 is not a positive integer'),
    (['--show=-1'], 'flag --show=-1: -1 is not a non-negative integer'),
  ],
)
def test_flags_that_would_be_ignored_are_refused_before_the_checkpoint_is_read(given, said):
  out = call('--checkpoint=nowhere', *given)
  assert (out.returncode, out.stdout, out.stderr.count('\n')) == (2, '', 1)
  assert out.stderr.startswith(f'error: {said}')


REACHED = """
import runpy
from r1jax.train import restored
restored.load = lambda *_: None
restored.harness = lambda model, *given, **named: {'given': given, **named}
runpy.run_module('r1jax.bin.evaluate', run_name='__main__')
"""


def test_flags_reach_the_harness():
  named = {'limit': 3, 'shots': 0, 'chat': True, 'context': 64}
  flags = ('--checkpoint=x', '--lm_eval=a,b', '--lm_eval_folder=f')
  flags += tuple(f'--lm_eval_{name}={value}' for name, value in named.items())
  command = [sys.executable, '-c', REACHED, *flags]
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert json.loads(out.stdout) == {'given': [['a', 'b'], 'f'], **named}, out.stderr


@pytest.mark.parametrize(
  'published, asked, context',
  [
    (131_072, None, 4096),
    (512, None, 512),
    (None, None, 2048),
    (131_072, 9000, 9000),
    (512, 64, 64),
    (None, 9000, 9000),
  ],
)
def test_the_context_of_the_harness(tmp_path, monkeypatch, published, asked, context):
  model = published_for(published, tmp_path)
  monkeypatch.setattr(restored.lm_eval, 'language_model', lambda *_, context, announce: context)
  monkeypatch.setattr(restored.lm_eval, 'run', lambda lm, *_, **options: (lm, options))
  made = restored.harness(model, ['a'], shots=2, context=asked)
  assert made == (context, {'limit': None, 'shots': 2, 'chat': False})


def test_a_context_beyond_the_published_one_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'--lm_eval_context=513: .* published for 512 tokens; give'):
    restored.harness(published_for(512, tmp_path), ['a'], context=513)


def published_for(length, folder):
  """A restored model whose config.json says what it was published for, if anything."""
  said = {} if length is None else {'max_position_embeddings': length}
  (folder / 'config.json').write_text(json.dumps(said))
  exp = types.SimpleNamespace(tokenizer=Public(str(folder)), model=None)
  return types.SimpleNamespace(exp=exp, params=None, tok=None, engine=None)
