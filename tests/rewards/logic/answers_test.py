import pytest

from r1jax.rewards.logic.answers import assignment, stated, verdicts

ROLES = ('knight', 'knave')


@pytest.mark.parametrize(
  ('answer', 'three', 'found'),
  [
    ('So the answer is **True**.', True, {'True'}),
    ('It cannot be determined', True, {'Unknown'}),
    ('It cannot be determined', False, set()),
    ('does not follow', False, {'False'}),
    ('true or false', True, {'True', 'False'}),
    ('true, since A holds', True, set()),
  ],
)
def test_verdicts(answer, three, found):
  assert verdicts(answer, three) == found


@pytest.mark.parametrize(
  ('answer', 'found'),
  [
    ('A is a knight, and B is a knave.', {'A': {True}, 'B': {False}}),
    ('A and B are knaves', {'A': {False}, 'B': {False}}),
    ('A is not a knight, hat = red', {'A': {False}, 'hat': {'red'}}),
    ('A=1 or A=0', {'A': {True, False, None}}),
    ('hat is not red', None),
    ('A is tall', None),
    ('A is a knight because B lies', None),
    ('', None),
  ],
)
def test_assignments(answer, found):
  assert assignment(answer, ['A', 'B', 'hat'], {'hat': ('red', 'blue')}, ROLES) == found


def test_a_stated_formula_stands_alone():
  assert stated('Therefore, the conclusion is $A \\to B$.') == 'A \\to B'
