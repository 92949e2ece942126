"""Logic problems from a file, decided by z3."""

import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.logic import Logic
from r1jax.tasks.make import make
from r1jax.tasks.splits import split_of

KNIGHTS = {
  'problem': 'A says: B is a knave. B says: we are both knights.',
  'constraints': ['A <-> not B', 'B <-> (A and B)'],
  'roles': ['knight', 'knave'],
}
HOUSES = {
  'problem': 'Ann, Bob and Eve sit in a row.',
  'constraints': ['distinct(ann, bob, eve)', 'ann = bob + 1', 'eve = 1'],
  'domains': {name: [1, 2, 3] for name in ('ann', 'bob', 'eve')},
  'asked': ['ann'],
}
RAIN = {'problem': 'Is it wet?', 'premises': ['rain -> wet', 'rain'], 'conclusion': 'wet'}
FOLLOWS = {'problem': 'What follows?', 'premises': ['p -> q', 'p']}


def grade(tmp_path, row, answer):
  (tmp_path / 'riddles.jsonl').write_text(json.dumps(row))
  task = make(Logic(str(tmp_path / 'riddles.jsonl')))
  [e] = task.examples(split_of(row['problem']), 0, 1)
  return task.grade(e, f'<think></think><answer>{answer}</answer>')


@pytest.mark.parametrize(
  ('row', 'answer', 'outcome'),
  [
    (KNIGHTS, 'A is a knight, B is a knave', Outcome.CORRECT),
    (KNIGHTS, 'A is a knave, B is a knight', Outcome.WRONG),
    (HOUSES, 'ann = 3', Outcome.CORRECT),
    (HOUSES, 'ann = 2', Outcome.WRONG),
    (RAIN, 'True', Outcome.CORRECT),
    (RAIN, 'Unknown', Outcome.WRONG),
    (RAIN | {'three': False}, 'Yes', Outcome.CORRECT),
    (FOLLOWS, 'q', Outcome.CORRECT),
    (FOLLOWS, 'not q', Outcome.WRONG),
    (FOLLOWS, '((', Outcome.UNPARSEABLE),
    (KNIGHTS | {'constraints': ['A or B']}, 'A is a knight, B is a knave', Outcome.UNPARSEABLE),
  ],
)
def test_grades(tmp_path, row, answer, outcome):
  got = grade(tmp_path, row, answer)
  assert (got.outcome, got.reward) == (outcome, float(outcome is Outcome.CORRECT))


@pytest.mark.parametrize(
  'row',
  [
    {'problem': 'neither'},
    KNIGHTS | {'premises': ['p']},
    KNIGHTS | {'constraints': ['A <-> (']},
    KNIGHTS | {'constraints': []},
    KNIGHTS | {'roles': ['knight']},
    HOUSES | {'domains': {'ann': []}},
    HOUSES | {'domains': {'ann': [True]}},
    HOUSES | {'domains': ['ann']},
    RAIN | {'conclusion': 3},
    RAIN | {'three': 'yes'},
  ],
)
def test_bad_rows_are_errors_with_their_line(tmp_path, row):
  with pytest.raises(UserError, match=r'line 1: expected \{"problem": "…", "constraints"'):
    grade(tmp_path, row, '')
