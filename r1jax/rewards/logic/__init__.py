"""Logic by a solver (z3): puzzles answered by an assignment, entailments answered by a word.

    Puzzle      the answer must name every asked variable and extend to a model of the constraints;
    Entailment  premises ⊨ conclusion: True, premises ⊨ ¬conclusion: False, neither: Unknown;
    Derivation  the answer is a formula that follows from the premises and is no tautology.

A problem that says nothing certain (constraints without or with several solutions, contradictory
premises, a formula outside the grammar) is UNPARSEABLE whatever the answer; a solver that gives up
within `seconds` is TIMEOUT. Cost: 1–5 ms, two or three solver calls on a handful of variables.
"""

import dataclasses
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.logic.answers import assignment, stated, verdicts
from r1jax.rewards.logic.formulas import MAX_CHARS, FormulaError, names, parse
from r1jax.rewards.logic.solver import Solver, Unsolved
from r1jax.rewards.outcome import Outcome


@dataclasses.dataclass(frozen=True)
class Puzzle:
  """`domains` (name, values) of variables that are not Boolean; `roles` the words for (1, 0).

  asked: the variables that an answer must name; all of them if empty.
  """

  constraints: tuple[str, ...]
  domains: tuple[tuple[str, tuple[str | int, ...]], ...] = ()
  roles: tuple[str, str] = ('true', 'false')
  asked: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entailment:
  """`three`: True, False or Unknown; without it Yes (follows) or No (does not follow)."""

  premises: tuple[str, ...]
  conclusion: str
  three: bool = True


@dataclasses.dataclass(frozen=True)
class Derivation:
  """Which formula follows from the premises?"""

  premises: tuple[str, ...]


def verify(problem: Puzzle | Entailment | Derivation, answer: str, seconds: float = 2.0) -> Outcome:
  """Outcome of an answer; raises only if z3 is missing."""
  if not isinstance(answer, str) or len(answer) > MAX_CHARS:
    return Outcome.UNPARSEABLE
  solver = Solver(seconds)
  try:
    match problem:
      case Puzzle():
        return _puzzle(problem, answer, solver)
      case Entailment():
        return _entailment(problem, answer, solver)
      case Derivation():
        return _derivation(problem, answer, solver)
  except FormulaError:
    return Outcome.UNPARSEABLE
  except Unsolved:
    return Outcome.TIMEOUT
  raise UserError(f'problem is {problem!r}; expected a Puzzle, an Entailment or a Derivation')


def _puzzle(problem: Puzzle, answer: str, solver: Solver) -> Outcome:
  solver = solver.within(problem.domains)
  formulas = [parse(text) for text in problem.constraints]
  terms = [solver.term(formula) for formula in formulas]
  variables = set().union(*map(names, formulas), solver.domains) - set(solver.labels)
  asked = problem.asked or tuple(sorted(variables))
  given = assignment(answer, sorted({*variables, *asked}), solver.domains, problem.roles)
  if given is None or not asked or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  if any(len(values) > 1 for values in given.values()) or not set(asked) <= set(given):
    return Outcome.WRONG
  equal = [_equals(solver, name, *given[name]) for name in given]
  if not solver.satisfiable(*terms, *equal):
    # A puzzle with several solutions is no gold, but it takes none to see that this is not one.
    return Outcome.WRONG
  shown = [_equals(solver, name, *given[name]) for name in asked]
  several = solver.satisfiable(*terms, solver.z3.Not(solver.z3.And(shown)))
  return Outcome.UNPARSEABLE if several else Outcome.CORRECT


def _equals(solver: Solver, name: str, value: Any) -> Any:
  term = solver.term(('name', name))
  return term == (solver.value(value) if name in solver.domains else value)


def _entailment(problem: Entailment, answer: str, solver: Solver) -> Outcome:
  terms = [solver.term(parse(text)) for text in problem.premises]
  conclusion = solver.term(parse(problem.conclusion))
  given = verdicts(answer, problem.three)
  if not given or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  if not solver.satisfiable(*terms, solver.z3.Not(conclusion)):
    truth = 'True'
  elif not problem.three or not solver.satisfiable(*terms, conclusion):
    truth = 'False'
  else:
    truth = 'Unknown'
  return _outcome(given == {truth})


def _derivation(problem: Derivation, answer: str, solver: Solver) -> Outcome:
  premises = [parse(text) for text in problem.premises]
  formula = parse(stated(answer))
  terms, given = [solver.term(p) for p in premises], solver.term(formula)
  if not terms or not solver.satisfiable(*terms):
    return Outcome.UNPARSEABLE
  denied = solver.z3.Not(given)
  return _outcome(solver.satisfiable(denied) and not solver.satisfiable(*terms, denied))


def _outcome(correct: bool) -> Outcome:
  return Outcome.CORRECT if correct else Outcome.WRONG
