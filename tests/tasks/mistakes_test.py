"""Mistakes: exactly one number changes, and it is known where."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tasks import mistakes
from r1jax.tasks.solutions import chain_sum
from r1jax.tasks.task import Example

TERMS = st.lists(st.tuples(st.sampled_from('+-'), st.integers(0, 99)), min_size=2, max_size=6)


def example(expression, name='a', terse=0.0):
  answer = str(eval(expression))
  entry = {'metadata': {'expression': expression}, 'answer': answer}
  return Example(name, expression, answer, chain_sum(entry, terse))


def wrong_lines(solution):
  """Which steps say something false."""
  sides = (line.split('=') for line in solution.split('\n'))
  return [i for i, (left, right) in enumerate(sides) if eval(left) != int(right)]


@given(TERMS, st.text(max_size=4), st.sampled_from([0.0, 1.0]))
def test_one_step_is_wrong_and_all_before_it_are_as_they_were(terms, name, terse):
  e = example(' '.join([str(terms[0][1]), *(f'{s} {t}' for s, t in terms[1:])]), name, terse)
  m = mistakes.mistaken(e)
  assert wrong_lines(e.solution) == [] and wrong_lines(m.solution) == [m.step]
  before, after = e.solution.split('\n'), m.solution.split('\n')
  assert [i for i, pair in enumerate(zip(before, after)) if len(set(pair)) == 2] == [m.step]
  off = abs(int(before[m.step].split('=')[1]) - int(after[m.step].split('=')[1]))
  assert 1 <= off <= 3
  last = m.step == len(before) - 1
  assert m.answer == (after[-1].split('=')[1] if last else e.answer)
  labels = mistakes.labels(m)
  assert labels == [1.0] * m.step + [0.0] * (len(before) + 1 - m.step)
  assert len(mistakes.steps(m.solution, m.answer)) == len(labels)


def test_every_step_and_amount_comes_up_and_the_id_decides():
  e = example('4 + 3 - 2 + 5')
  made = [mistakes.mistaken(example('4 + 3 - 2 + 5', str(i))) for i in range(60)]
  assert made[:9] == [mistakes.mistaken(example('4 + 3 - 2 + 5', str(i))) for i in range(9)]
  assert {m.step for m in made} == {0, 1, 2}
  numbers = lambda text: list(map(int, re.findall(r'=(-?\d+)', text)))
  off = {a - b for m in made for a, b in zip(numbers(m.solution), numbers(e.solution))}
  assert off == {-3, -2, -1, 0, 1, 2, 3}


def test_a_number_that_is_not_the_answer_leaves_it():
  """'$24' is no number that was computed: the answer stays and contradicts the thought."""
  m = mistakes.mistaken(Example('a', '?', '$24', '48 / 2 = 24.'))
  assert m.answer == '$24' and m.step == 0
  assert re.fullmatch(r'48 / 2 = 2[1-7]\.', m.solution) and m.solution != '48 / 2 = 24.'


@pytest.mark.parametrize(
  ('solution', 'answer'),
  [(None, '1'), ('it is clear', '1'), ('x = 2.5', '2.5'), ('a = b', 'b'), ('1+1=2', None)],
)
def test_without_a_computed_number_there_is_no_mistake(solution, answer):
  with pytest.raises(UserError, match='problem p/3: its worked solution'):
    mistakes.mistaken(Example('p/3', '?', answer, solution))
