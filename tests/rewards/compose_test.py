"""Weighted parts, and what a completion earns."""

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.compose import RewardWeights, compose, judge, last_number
from r1jax.rewards.outcome import Grade, Outcome

WEIGHTS = RewardWeights(accuracy=1.0, format=0.5, language=0.25)


def says(answer):
  outcome = Outcome.CORRECT if answer == '7' else Outcome.WRONG
  return outcome, float(outcome is Outcome.CORRECT)


def test_weighted_sum_of_named_parts():
  parts = {'accuracy': 1.0, 'format': 0.5, 'length': 3.0}
  assert compose({'accuracy': 2.0, 'format': 0.1}, parts) == pytest.approx(2.05)
  with pytest.raises(UserError, match="no reward part 'fromat'; did you mean 'format'"):
    compose({'fromat': 1.0}, parts)


@pytest.mark.parametrize(
  ('text', 'grade'),
  [
    (
      '<think>so it is</think><answer> 7 </answer>',
      Grade(Outcome.CORRECT, 1.75, {'accuracy': 1.0, 'format': 1.0, 'language': 1.0}),
    ),
    (
      '<think>是 so</think><answer>8</answer>',
      Grade(Outcome.WRONG, 0.625, {'accuracy': 0.0, 'format': 1.0, 'language': 0.5}),
    ),
    (
      '<think>so</think><answer> </answer>',
      Grade(Outcome.UNPARSEABLE, 0.75, {'accuracy': 0.0, 'format': 1.0, 'language': 1.0}),
    ),
    (
      '<think>so</think><answer>7</answer>.',
      Grade(Outcome.UNPARSEABLE, 0.25, {'accuracy': 0.0, 'format': 0.0, 'language': 1.0}),
    ),
    (
      '7',
      Grade(Outcome.UNPARSEABLE, 0.0, {'accuracy': 0.0, 'format': 0.0, 'language': 0.0}),
    ),
  ],
)
def test_judge(text, grade):
  assert judge(text, WEIGHTS, says) == grade


def test_contract_08_check_never_sees_a_malformed_completion():
  def fail(answer):
    raise AssertionError(answer)

  for text in ('', '<answer>7</answer>', '<think>7', '<think></think><answer>7</answer>7'):
    assert judge(text, WEIGHTS, fail).outcome is Outcome.UNPARSEABLE


def test_language_is_checked_early():
  with pytest.raises(UserError, match="no language 'fr'"):
    RewardWeights(target='fr')


@pytest.mark.parametrize(
  'text, answer',
  [
    ('The answer is 12.', '12'),
    ('5 + 3 - 2 = 6', '6'),
    ('5+3-2=-6', '-6'),
    ('so 8-2', '2'),
    ('it is −7, I think', '-7'),
    ('1,234,567.5 dollars', '1234567.5'),
    ('one of 1,2', '2'),
    ('<think>3</think>\n\nIt is **4**', '4'),
    ('<think>3', None),
    ('3</think>4', '4'),
    ('x2 has none', None),
    ('none at all', None),
    ('<think>5</think> none behind the thought', None),
  ],
)
def test_last_number(text, answer):
  assert last_number(text).answer == answer
  assert last_number(text).well_formed == (answer is not None)


def test_contract_08_without_a_number_nothing_is_checked():
  grade = judge('I do not know', WEIGHTS, says, 'last_number')
  assert (grade.outcome, grade.parts['accuracy']) == (Outcome.UNPARSEABLE, 0.0)
  grade = judge('It is 7', WEIGHTS, says, 'last_number')
  assert grade.outcome is says('7')[0] and grade.open
