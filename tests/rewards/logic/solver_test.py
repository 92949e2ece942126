import pytest

from r1jax.rewards.logic.formulas import FormulaError, parse
from r1jax.rewards.logic.solver import Solver


def test_labels_are_no_numbers_that_a_variable_may_have():
  """x = red holds for no x, negative ones included."""
  solver = Solver(2.0, [('x', (-2, -1, 0)), ('coat', ('red', 'blue'))])
  assert not solver.satisfiable(solver.term(parse('x = red')))
  assert solver.satisfiable(solver.term(parse('coat = red and x < 0')))


def test_variables_stay_in_their_domains():
  solver = Solver(2.0, [('x', (1, 2)), ('y', (1, 2))])
  assert solver.satisfiable(solver.term(parse('x + y = 4')))
  assert not solver.satisfiable(solver.term(parse('x + y = 5')))
  assert not solver.satisfiable(solver.term(parse('distinct(x, y) and x = y')))


@pytest.mark.parametrize('text', ['A + 1 = 2', 'A and 1 < 2 = B', 'not x', 'A = x'])
def test_what_mixes_truths_and_numbers_is_no_formula(text):
  with pytest.raises(FormulaError):
    solver = Solver(2.0, [('x', (1, 2))])
    solver.term(parse(text))
