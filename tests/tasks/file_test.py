"""A user's own task: the example that the README quotes, and what can be wrong with a file."""

import functools
import pathlib

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.compose import RewardWeights
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.pool import Pool
from r1jax.tasks.file import File, from_functions, load
from r1jax.tasks.make import make
from r1jax.tasks.splits import split_of
from r1jax.tasks.task import Example

EXAMPLE = pathlib.Path(__file__).parent / 'my_task_example.py'


def completion(answer):
  return f'<think></think><answer>{answer}</answer>'


def test_the_example_has_twenty_lines_and_works_in_the_pool():
  assert len(EXAMPLE.read_text().splitlines()) <= 20
  task = load(File(str(EXAMPLE)))
  parts = {s: task.examples(s, 0, 30) for s in ('sft', 'rl', 'eval')}
  assert task.name == 'products'
  assert all(split_of(e.question) == s for s, es in parts.items() for e in es)
  assert all((e.solution is not None) == (s == 'sft') for s, es in parts.items() for e in es)
  with Pool(functools.partial(make, File(str(EXAMPLE))), workers=1) as pool:
    grades = pool.map([(e, completion(a)) for e in parts['rl'][:5] for a in (e.answer, '1')])
  assert [g.outcome for g in grades] == [Outcome.CORRECT, Outcome.WRONG] * 5


@pytest.mark.parametrize(
  ('said', 'outcome', 'reward'),
  [
    (True, Outcome.CORRECT, 1.0),
    (False, Outcome.WRONG, 0.0),
    (0.4, Outcome.WRONG, 0.4),
    (1.0, Outcome.CORRECT, 1.0),
    (Outcome.UNPARSEABLE, Outcome.UNPARSEABLE, 0.0),
    (Outcome.CORRECT, Outcome.CORRECT, 1.0),
  ],
)
def test_what_a_grader_may_say(said, outcome, reward):
  task = from_functions('t', lambda seed: Example('', str(seed)), lambda example, answer: said)
  grade = task.grade(Example('', ''), completion('x'))
  assert (grade.outcome, grade.reward) == (outcome, reward)


@pytest.mark.parametrize('said', [None, 'yes', 2.0, -1, float('nan')])
def test_what_a_grader_may_not_say(said):
  task = from_functions('t', lambda seed: Example('', str(seed)), lambda example, answer: said)
  with pytest.raises(UserError, match='expected a bool, a float in'):
    task.grade(Example('', ''), completion('x'))


def test_make_must_give_examples():
  task = from_functions('t', str, lambda example, answer: True)
  with pytest.raises(UserError, match=r"make\(0\) gave '0'; expected an Example"):
    task.examples('rl', 0, 1)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = 1', r'defines no task\(\)'),
    ('def task(): return 7', r'task\(\) gave 7; expected an object with'),
    ('def task(): return 1 / 0', r'ZeroDivisionError.*my\.py:1'),
    ('def task(:', 'SyntaxError'),
    ('import nothing_of_this_name', 'ModuleNotFoundError'),
  ],
)
def test_bad_files(tmp_path, text, message):
  (tmp_path / 'my.py').write_text(text)
  with pytest.raises(UserError, match=message):
    load(File(str(tmp_path / 'my.py')))


@pytest.mark.parametrize('name', ['none.py', '', 'notes.txt'])
def test_no_such_file(tmp_path, name):
  (tmp_path / 'notes.txt').write_text('def task(): pass')
  with pytest.raises(UserError, match='no Python file at'):
    load(File(str(tmp_path / name)))


def test_a_file_may_define_dataclasses(tmp_path):
  (tmp_path / 'my.py').write_text(
    'from __future__ import annotations\n'
    'import dataclasses\n'
    'from r1jax.tasks.file import from_functions\n'
    '@dataclasses.dataclass\n'
    'class Rule:\n'
    '  n: int\n'
    "def task(): return from_functions('t', None, None)\n"
  )
  assert load(File(str(tmp_path / 'my.py'))).name == 't'


def parted(**kw):
  return from_functions('t', lambda seed: Example('', str(seed)), lambda e, a: a == '7', **kw)


def test_ones_own_parts_see_the_whole_completion():
  weights = RewardWeights(0.5, 0.0, 0.0)
  task = parted(weights=weights, parts={'short': (0.5, lambda e, c: 1 / len(c))})
  grade = task.grade(Example('', ''), completion('7'))
  assert grade.parts['short'] == 1 / len(completion('7'))
  assert grade.reward == 0.5 + 0.5 / len(completion('7'))
  assert task.grade(Example('', ''), 'no form').parts['short'] == 1 / 7


def test_ones_own_group_parts():
  task = parted(group={'first': (0.25, lambda samples: [float(s is samples[0]) for s in samples])})
  texts = [completion('7'), completion('8')]
  grades = task.regrade([task.grade(Example('', ''), t) for t in texts], texts)
  assert [g.reward for g in grades] == [1.25, 0.0]
  assert [g.parts['first'] for g in grades] == [1.0, 0.0]


@pytest.mark.parametrize('kind', ['parts', 'group'])
def test_ones_own_parts_are_checked_before_any_text(kind):
  with pytest.raises(UserError, match="reward part 'format' is there already"):
    parted(**{kind: {'format': (1.0, len)}})
  with pytest.raises(UserError, match="the weight of reward part 'mine' is nan"):
    parted(**{kind: {'mine': (float('nan'), len)}})


def test_one_part_is_not_both_of_a_text_and_of_a_group():
  with pytest.raises(UserError, match="part 'mine' is of one text and of a group"):
    parted(parts={'mine': (1.0, len)}, group={'mine': (1.0, len)})


def test_nan_of_ones_own_part_is_an_error():
  task = parted(parts={'mine': (1.0, lambda e, c: float('nan'))})
  with pytest.raises(UserError, match="reward part 'mine' is nan; expected a finite number"):
    task.grade(Example('', ''), completion('7'))
