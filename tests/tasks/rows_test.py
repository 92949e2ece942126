import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.compose import RewardWeights
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.rows import RowsTask, is_text
from r1jax.tasks.splits import split_of


def made(path):
  fits = lambda row: isinstance(row.get('limit'), int)
  below = lambda row, answer: Outcome.CORRECT if int(answer) < row['limit'] else Outcome.WRONG
  return RowsTask(str(path), 'a limit', fits, below, RewardWeights(format=0.5))


def test_the_verifier_hears_the_whole_row(tmp_path):
  (tmp_path / 'below.jsonl').write_text(json.dumps({'problem': 'Below?', 'limit': 5}))
  task = made(tmp_path / 'below.jsonl')
  [e] = task.examples(split_of('Below?'), 0, 1)
  right, wrong = (task.grade(e, f'<think></think><answer>{n}</answer>') for n in (4, 5))
  assert (task.name, e.id, e.answer) == ('below', 'below/0', None)
  assert (right.outcome, right.reward) == (Outcome.CORRECT, 1.5)
  assert (wrong.outcome, wrong.reward) == (Outcome.WRONG, 0.5)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"problem": "a", "limit": 1}\n{"problem": "b"}', r'below\.jsonl line 2: expected a limit'),
    ('{"problem": "", "limit": 1}', 'line 1: expected a limit'),
    ('\n\n[]', 'line 3: expected a limit'),
    ('\n', 'holds no problems'),
    ('{', 'line 1 is not JSON'),
  ],
)
def test_what_a_file_lacks_is_said_with_its_line(tmp_path, text, message):
  (tmp_path / 'below.jsonl').write_text(text)
  with pytest.raises(UserError, match=message):
    made(tmp_path / 'below.jsonl')


def test_texts_say_something():
  assert [is_text(x) for x in ('a', ' ', '', 1, None)] == [True, False, False, False, False]
