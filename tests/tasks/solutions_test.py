"""Worked solutions of chain_sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tasks.solutions import WORKED, chain_sum


def entry(expression, answer):
  return {'metadata': {'expression': expression}, 'answer': str(answer)}


@pytest.mark.parametrize(
  ('expression', 'answer', 'thought'),
  [
    ('4 + 3 - 2', 5, '4+3=7\n7-2=5'),
    ('1 - 9 - 0 + 3', -5, '1-9=-8\n-8-0=-8\n-8+3=-5'),
    ('-12 - -30 + 5', 23, '-12--30=18\n18+5=23'),
    ('7', 7, '7'),
  ],
)
def test_running_sum(expression, answer, thought):
  assert chain_sum(entry(expression, answer)) == thought


@given(st.lists(st.tuples(st.sampled_from('+-'), st.integers(0, 99)), min_size=2, max_size=8))
def test_every_line_is_true_and_follows_from_the_last(terms):
  expression = f'{terms[0][1]} ' + ' '.join(f'{s} {t}' for s, t in terms[1:])
  lines = chain_sum(entry(expression, eval(expression))).split('\n')
  left, right = zip(*(line.split('=') for line in lines))
  assert [eval(x) for x in left] == [int(y) for y in right]
  assert all(x.startswith(y) for x, y in zip(left[1:], right))
  assert int(right[-1]) == eval(expression)
  assert len(lines) == len(terms) - 1


def test_what_does_not_fit_is_an_error():
  with pytest.raises(UserError, match='is not of the form'):
    chain_sum(entry('4 * 3', 12))
  with pytest.raises(UserError, match='gives 8 for'):
    chain_sum(entry('4 + 3', 8))
  assert list(WORKED) == ['chain_sum']


def test_terse_solutions_take_all_steps_at_once():
  assert chain_sum(entry('4 + 3 - 2 + 5', 10), terse=1.0) == '4+3-2+5=10'
  assert chain_sum(entry('4 + 3 - 2 + 5', 10), terse=0.0) == '4+3=7\n7-2=5\n5+5=10'


def test_the_share_of_terse_solutions_is_kept_and_follows_from_the_question():
  questions = [f'{a} + {b} - {c}' for a in range(10) for b in range(10) for c in range(10)]
  made = [chain_sum(entry(q, eval(q)), terse=0.6) for q in questions]
  assert made == [chain_sum(entry(q, eval(q)), terse=0.6) for q in questions]
  # 1,000 coins: three standard deviations are 0.046.
  assert abs(sum('\n' not in m for m in made) / len(made) - 0.6) < 0.05
