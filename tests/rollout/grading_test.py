"""Grading ahead, by one process and by several."""

import threading
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.rollout import grading
from r1jax.rollout.grading import Grading


def test_it_grades_while_others_work():
  """start returns before a grade is made; answers come in the order of asking."""
  go = threading.Event()

  def grade(calls):
    assert go.wait(10)
    return [Grade(Outcome.CORRECT, float(c)) for c in calls]

  with Grading(grade) as ahead:
    answers = [ahead.start([1, 2]), ahead.start([3])]
    go.set()
    assert [g.reward for answer in answers for g in answer()] == [1, 2, 3]
    assert [g.reward for g in ahead([4])] == [4]


def test_what_a_grader_raises_reaches_who_waits():
  def grade(_):
    raise UserError('no gold')

  with Grading(grade) as ahead:
    answer = ahead.start([1])
    with pytest.raises(UserError, match='no gold'):
      answer()


def test_leaving_ends_what_is_open():
  """Closing wakes a grader that waits for a verifier; the thread is gone."""
  closed = threading.Event()

  def grade(_):
    if closed.wait(30):
      raise RuntimeError('the pool is closed')
    return []

  begin, before = time.monotonic(), {*threading.enumerate()}
  with Grading(grade, closed.set) as ahead:
    ahead.start([1])
  assert time.monotonic() - begin < 10
  assert not any(t.name.startswith('grading') for t in {*threading.enumerate()} - before)


def test_every_process_grades_its_part_and_knows_all(monkeypatch):
  """As process 1 of 3; what the others say is made up."""
  monkeypatch.setattr(grading.processes, 'count', lambda: 3)
  monkeypatch.setattr(grading.processes, 'index', lambda: 1)
  monkeypatch.setattr(grading.processes, 'together', lambda what: what())
  others = lambda mine: [[('wrong', 0.0, {}), ('wrong', 3.0, {})], mine, [('timeout', 2.0, {})]]
  monkeypatch.setattr(grading.processes, 'exchange', others)
  grade = lambda calls: [Grade(Outcome.CORRECT, float(c), {'a': 1.0}) for c in calls]
  asked = Grading(grade)
  grades = asked([0, 1, 2, 3])
  assert asked.start([0, 1, 2, 3])() == grades
  assert [g.reward for g in grades] == [0.0, 1.0, 2.0, 3.0]
  assert [g.outcome.value for g in grades] == ['wrong', 'correct', 'timeout', 'wrong']
  assert grades[1].parts == {'a': 1.0}
