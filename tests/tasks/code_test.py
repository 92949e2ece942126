import functools
import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import sandbox
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.pool import Pool
from r1jax.tasks import code
from r1jax.tasks.make import make
from r1jax.tasks.splits import split_of

READ = {'problem': 'Add two numbers.', 'stdin': [['3 4', '7'], ['1 -1', '0']]}
CALL = {'problem': 'Write add.', 'language': 'c', 'calls': [['add(3, 4)', '7']]}


def sandboxed():
  try:
    sandbox.Bubblewrap().check()
  except UserError as e:
    return str(e)
  return ''


def write(tmp_path, *rows):
  (tmp_path / 'sums.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return code.Code(str(tmp_path / 'sums.jsonl'))


@pytest.mark.skipif(bool(sandboxed()), reason=sandboxed())
def test_grades_in_a_pool(tmp_path):
  """Each worker has a sandbox of its own."""
  spec = write(tmp_path, READ, CALL)
  task = make(spec)
  example = {
    row['problem']: task.examples(split_of(row['problem']), 0, 1)[0] for row in (READ, CALL)
  }
  loop = 'while True: pass'
  cases = [
    (READ, 'print(sum(map(int, input().split())))', Outcome.CORRECT),
    (READ, 'print(7)', Outcome.WRONG),
    (READ, 'print(', Outcome.UNPARSEABLE),
    (READ, loop, Outcome.TIMEOUT),
    (CALL, 'int add(int a, int b) { return a + b; }', Outcome.CORRECT),
    (CALL, 'int add(int a, int b) { return a * b; }', Outcome.WRONG),
  ]
  calls = [
    (example[row['problem']], f'<think></think><answer>```\n{text}\n```</answer>')
    for row, text, _ in cases
  ]
  with Pool(functools.partial(make, spec), 2, 15.0) as pool:
    found = [grade.outcome for grade in pool.map(calls)]
  assert found == [outcome for *_, outcome in cases]


@pytest.mark.parametrize(
  'change',
  [
    {'stdin': []},
    {'calls': [['f(1)', '2']]},
    {'language': 'rust'},
    {'stdin': [['1']]},
    {'stdin': [['1', 2]]},
    {'stdin': 'ab'},
  ],
)
def test_bad_rows(tmp_path, change):
  with pytest.raises(UserError, match=r'line 1: expected \{"problem": "…", "stdin"'):
    make(write(tmp_path, READ | change))


def test_without_a_sandbox_the_task_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(code, 'Bubblewrap', lambda: sandbox.Bubblewrap(path='/no/bwrap'))
  with pytest.raises(UserError, match=r'no program .*apt install bubblewrap'):
    make(write(tmp_path, READ))
