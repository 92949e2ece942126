import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.choice import Choice
from r1jax.tasks.make import make
from r1jax.tasks.splits import split_of

ROW = {'problem': 'A red, B green?', 'answer': 'B', 'options': ['red', 'green']}


def task_of(tmp_path, row):
  (tmp_path / 'colours.jsonl').write_text(json.dumps(row))
  return make(Choice(str(tmp_path / 'colours.jsonl')))


@pytest.mark.parametrize(
  ('answer', 'outcome'),
  [
    ('(B)', Outcome.CORRECT),
    ('green', Outcome.CORRECT),
    ('A', Outcome.WRONG),
    ('who knows', Outcome.UNPARSEABLE),
  ],
)
def test_grades(tmp_path, answer, outcome):
  task = task_of(tmp_path, ROW)
  [e] = task.examples(split_of(ROW['problem']), 0, 1)
  grade = task.grade(e, f'<think></think><answer>{answer}</answer>')
  assert (task.name, grade.outcome) == ('colours', outcome)
  assert grade.reward == float(outcome is Outcome.CORRECT)


@pytest.mark.parametrize(
  'change', [{'answer': 2}, {'answer': ''}, {'options': 'ab'}, {'problem': 1}]
)
def test_bad_rows(tmp_path, change):
  with pytest.raises(UserError, match=r'line 1: expected \{"problem": "…", "answer": "B"\}'):
    task_of(tmp_path, ROW | change)
