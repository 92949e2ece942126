"""Problems from a JSONL file."""

import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.maths import Maths, MathsTask
from r1jax.tasks.splits import split_of


@pytest.fixture
def path(tmp_path):
  rows = [
    {'problem': f'{i} / 2 ?', 'answer': f'{i}/2', 'solution': f'half of {i}'} for i in range(99)
  ]
  file = tmp_path / 'halves.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  return str(file)


def test_splits_cover_the_file(path):
  task = MathsTask(Maths(path))
  parts = {s: task.examples(s, 0, 40) for s in ('sft', 'rl', 'eval')}
  assert task.name == 'halves'
  assert all(split_of(e.question) == s for s, es in parts.items() for e in es)
  assert all((e.solution is not None) == (s == 'sft') for s, es in parts.items() for e in es)
  assert parts['rl'][0].id.startswith('halves/')
  assert len(task.examples('rl', 0, 500)) == 500


@pytest.mark.parametrize(
  ('answer', 'outcome'),
  [
    ('\\frac{7}{2}', Outcome.CORRECT),
    ('3.5', Outcome.CORRECT),
    ('4', Outcome.WRONG),
    ('\\frac{7', Outcome.UNPARSEABLE),
    ('', Outcome.UNPARSEABLE),
  ],
)
def test_grades(tmp_path, answer, outcome):
  (tmp_path / 'one.jsonl').write_text('{"problem": "seven halves", "answer": "7/2"}')
  task = MathsTask(Maths(str(tmp_path / 'one.jsonl')))
  [e] = task.examples(split_of('seven halves'), 0, 1)
  grade = task.grade(e, f'<think></think><answer>{answer}</answer>')
  assert (grade.outcome, grade.reward) == (outcome, float(outcome is Outcome.CORRECT))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'holds no problems'),
    ('{"problem": "a", "answer": "1"}\n{', 'line 2 is not JSON'),
    ('{"problem": "a", "answer": 1}', 'line 1: expected .* numbers go in quotes'),
    ('{"problem": "a"}', 'line 1: expected'),
    ('["a"]', 'line 1: expected'),
    ('{"problem": " ", "answer": "1"}', 'line 1: expected'),
  ],
)
def test_bad_files(tmp_path, text, message):
  (tmp_path / 'bad.jsonl').write_text(text)
  with pytest.raises(UserError, match=message):
    MathsTask(Maths(str(tmp_path / 'bad.jsonl')))


def test_no_file(tmp_path):
  with pytest.raises(UserError, match='expected a JSONL file of problems'):
    MathsTask(Maths(str(tmp_path / 'none.jsonl')))
