"""Outcomes and grades travel between processes."""

import pickle

from r1jax.rewards.outcome import Grade, Outcome


def test_four_outcomes():
  assert [o.value for o in Outcome] == ['correct', 'wrong', 'unparseable', 'timeout']


def test_grades_are_equal_after_pickling():
  grade = Grade(Outcome.CORRECT, 1.5, {'accuracy': 1.0})
  assert pickle.loads(pickle.dumps(grade)) == grade
  assert Grade(Outcome.WRONG, 0.0).parts == {}
