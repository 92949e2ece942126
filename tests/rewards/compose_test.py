"""Weighted parts, and what a completion earns."""

import pytest

from r1jax.core import config
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
  with pytest.raises(UserError, match="no language 'xx'"):
    RewardWeights(target='xx')


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


def test_a_part_of_the_library_takes_a_weight_by_name():
  names = ('repetition', 'contradiction', 'safety', 'conciseness')
  weights = RewardWeights(others=tuple((name, 0.5) for name in names), budget=10)
  good = judge('<think>so it is</think><answer>7</answer>', weights, says)
  assert good.parts == {
    **{'accuracy': 1.0, 'format': 1.0, 'language': 1.0},
    **{'repetition': 0.0, 'contradiction': 0.0, 'safety': 1.0, 'conciseness': 1.0},
  }
  assert good.reward == 2.0
  bad = '<think>The answer is 7. Kill yourself.</think><answer>8</answer>'
  parts = judge(bad, weights, says).parts
  assert [parts[n] for n in names] == [0.0, -1.0, 0.0, 0.0]
  looped = judge('<think>' + 'so it is, ' * 99 + '</think><answer>7</answer>', weights, says)
  assert (looped.parts['repetition'], looped.parts['conciseness']) == (-1.0, 0.0)


def test_a_thought_that_never_closes_is_judged_as_it_is():
  weights = RewardWeights(others=(('repetition', 1.0),))
  assert judge('<think>' + 'so it is, ' * 99, weights, says).reward == -1.0


def test_unnamed_parts_are_not_computed():
  assert set(judge('7', RewardWeights(), says).parts) == {'accuracy', 'format', 'language'}


def test_ones_own_part():
  text = '<think>so</think><answer>7</answer>'
  grade = judge(text, RewardWeights(), says, own={'mine': (0.25, 0.5)})
  assert (grade.reward, grade.parts['mine']) == (1.125, 0.5)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), None, 'high', [1.0]])
def test_parts_are_finite_numbers(value):
  with pytest.raises(UserError, match=r"^reward part 'mine' is .*; expected a finite number$"):
    judge('7', RewardWeights(), says, own={'mine': (0.0, value)})
  with pytest.raises(
    UserError, match=r"^the weight of reward part 'mine' is .*; expected a finite"
  ):
    judge('7', RewardWeights(), says, own={'mine': (value, 0.0)})
  with pytest.raises(
    UserError, match=r"^the weight of reward part 'format' is .*; expected a finite"
  ):
    RewardWeights(format=value)


@pytest.mark.parametrize('name', ['accuracy', 'safety'])
def test_ones_own_part_needs_a_name_of_its_own(name):
  weights = RewardWeights(others=(('safety', 1.0),))
  with pytest.raises(UserError, match=f"reward part '{name}' is there already"):
    judge('7', weights, says, own={name: (1.0, 1.0)})


@pytest.mark.parametrize(
  ('kw', 'message'),
  [
    ({'others': (('repetiton', 1.0),)}, "no reward part 'repetiton'; did you mean 'repetition'"),
    ({'others': (('accuracy', 1.0),)}, "no reward part 'accuracy'"),
    ({'others': (('diversity', 1.0),)}, "no reward part 'diversity'"),
    ({'others': (('safety', 1.0), ('safety', 2.0))}, "'safety' has two weights"),
    ({'budget': 0}, 'budget=0; expected at least 1'),
  ],
)
def test_weights_are_checked_early(kw, message):
  with pytest.raises(UserError, match=message):
    RewardWeights(**kw)


def test_weights_are_a_config():
  weights = RewardWeights(0.7, target='ja', others=(('safety', 0.2), ('repetition', 0.1)))
  assert config.from_json(RewardWeights, config.to_json(weights)) == weights
  text = '(("safety", 0.2), ("repetition", 0.1))'
  assert config.override(RewardWeights(0.7, target='ja'), 'others', text) == weights
