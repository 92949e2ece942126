"""Command lines of a small binary, run as users do: what it prints and how it exits."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import ml_collections
import pytest

from r1jax.bin import flags
from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError

BINARY = """
import dataclasses, sys, time
from absl import flags as absl_flags
from r1jax.bin import flags

@dataclasses.dataclass(frozen=True)
class Experiment:
  steps: int
  name: str = 'a'

CONFIG = flags.define_config()
WORKDIR = absl_flags.DEFINE_string('workdir', '/tmp', 'where')
COUNT = absl_flags.DEFINE_integer('count', 1, 'how many')

def main(overrides):
  if WORKDIR.value == 'sleep':
    print('ready', flush=True)
    time.sleep(60)
  if WORKDIR.value == 'bug':
    raise RuntimeError('a bug')
  print(flags.load_config(Experiment, CONFIG.value, overrides), WORKDIR.value)
  return 3 if WORKDIR.value == 'three' else None

if __name__ == '__main__':
  flags.run(main)
"""
CONFIG = """
import ml_collections

def get_config(steps='5'):
  return ml_collections.ConfigDict({'steps': int(steps)})
"""


@dataclasses.dataclass(frozen=True)
class Experiment:
  steps: int
  name: str = 'a'


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'binary.py').write_text(BINARY)
  (tmp_path / 'config.py').write_text(CONFIG)
  (tmp_path / 'empty.py').write_text('x = 3\n')
  (tmp_path / 'notes.txt').write_text('get_config\n')
  typed = 'def get_config():\n  return 3\n'
  (tmp_path / 'wrong.py').write_text(typed)
  return tmp_path


def environment():
  """This process's, with the repository importable from another folder."""
  root = str(pathlib.Path(__file__).parents[2])
  return {**os.environ, 'PYTHONPATH': os.pathsep.join([root, os.environ.get('PYTHONPATH', '')])}


def call(folder, *args):
  command = [sys.executable, 'binary.py', *args]
  return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_split_overrides_takes_only_config_paths():
  argv = [
    'x',
    '--config=f.py',
    '--config.a.b=1=2',
    '--workdir',
    'w',
    '--config.c',
    '-3',
    '-config.d=',
  ]
  rest, overrides = flags.split_overrides([*argv, '--', '--config.e=1'])
  assert rest == ['x', '--config=f.py', '--workdir', 'w', '--', '--config.e=1']
  assert overrides == [('a.b', '1=2'), ('c', '-3'), ('d', '')]


@pytest.mark.parametrize('tail', [['--config.a'], ['--config.a', '--workdir=w']])
def test_an_override_without_value_is_refused(tail):
  with pytest.raises(UserError, match=r'--config\.a needs a value: --config\.a=VALUE'):
    flags.split_overrides(['x', *tail])


def test_load_config_reads_overrides_and_passes_the_text_on(folder):
  file = str(folder / 'config.py')
  assert flags.load_config(Experiment, file, []) == Experiment(5)
  overrides = [('name', 'b'), ('steps', '9')]
  assert flags.load_config(Experiment, file + ':7', overrides[:1]) == Experiment(7, 'b')
  assert flags.load_config(Experiment, file, overrides) == Experiment(9, 'b')
  with pytest.raises(ConfigError, match=r"no field 'stepz'; did you mean 'steps'\?"):
    flags.load_config(Experiment, file, [('stepz', '3')])


def test_get_config_may_return_the_dataclass(monkeypatch):
  monkeypatch.setattr(flags, '_get_config', lambda file: Experiment(4))
  assert flags.load_config(Experiment, 'f.py', [('name', 'c')]) == Experiment(4, 'c')
  monkeypatch.setattr(
    flags, '_get_config', lambda file: ml_collections.FrozenConfigDict({'steps': 2})
  )
  assert flags.load_config(Experiment, 'f.py', []) == Experiment(2)


@pytest.mark.parametrize(
  'file, message',
  [
    (None, 'no config given; expected --config=FILE'),
    ('confg.py', r"--config: no file '.*confg.py'; did you mean '.*config.py'\?"),
    ('empty.py', r'empty.py: has no get_config\(\)'),
    ('notes.txt', 'notes.txt is not a Python file'),
    ('wrong.py', r'get_config\(\) returned a int, expected ConfigDict or Experiment'),
    ('wrong.py:text', r"get_config cannot be called for '.*wrong.py:text': too many positional"),
  ],
)
def test_a_config_file_that_does_not_serve_is_one_clear_line(folder, file, message):
  with pytest.raises(UserError, match=message) as caught:
    flags.load_config(Experiment, file and str(folder / file), [])
  assert '\n' not in str(caught.value)


def test_run_prints_and_exits_with_what_main_returns(folder):
  out = call(folder, '--config=config.py', '--workdir=three', '--config.name', 'b')
  assert (out.returncode, out.stdout) == (3, "Experiment(steps=5, name='b') three\n"), out.stderr


@pytest.mark.parametrize(
  'args, words',
  [
    (['--config=config.py', '--config.nam=3'], ["no field 'nam'; did you mean 'name'?"]),
    (['--config=config.py', '--config.steps=x'], ["config.steps: got 'x', expected int"]),
    (['--config=config.py', '--config.steps'], ['--config.steps needs a value']),
    (['--config=none.py'], ["--config: no file 'none.py'"]),
    (['--confg=config.py'], ["no flag '--confg'; did you mean '--config'?", '--workdir']),
    (['--confg.steps=3'], ["no flag '--confg'; did you mean '--config'?"]),
    (['--count=x'], ['flag --count=x', 'invalid literal', '--help']),
    (['config.py'], ["'config.py' is not a flag; flags are written --name=value"]),
  ],
)
def test_mistakes_are_one_line_on_stderr_and_exit_2(folder, args, words):
  out = call(folder, *args)
  assert (out.returncode, out.stdout) == (2, ''), out.stderr
  assert out.stderr.startswith('error: ') and out.stderr.count('\n') == 1, out.stderr
  for word in words:
    assert word in out.stderr


def test_a_bug_keeps_its_traceback(folder):
  out = call(folder, '--workdir=bug')
  assert out.returncode == 1
  assert 'Traceback' in out.stderr and 'RuntimeError: a bug' in out.stderr


def test_help_lists_the_flags(folder):
  out = call(folder, '--help')
  assert '--config' in out.stdout and '--workdir' in out.stdout


def test_an_interrupt_exits_130_with_one_line(folder):
  command = [sys.executable, 'binary.py', '--workdir=sleep']
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  # A shell's background job, as which the tests may run, hands down an ignored SIGINT.
  heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
  process = subprocess.Popen(command, cwd=folder, env=environment(), preexec_fn=heed, **pipes)
  assert process.stdout.readline() == 'ready\n'
  time.sleep(0.2)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=120)
  assert (process.returncode, errors) == (130, 'interrupted\n')


def test_programs_without_a_config_refuse_overrides():
  flags.refuse([])
  with pytest.raises(UserError, match=r'--config\.model\.vocab: this program takes no config'):
    flags.refuse([('model.vocab', '3')])
