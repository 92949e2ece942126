"""z3 over formulas, with a limit of time."""

import types
from collections.abc import Iterable, Sequence
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.logic.formulas import BINDING, Formula, FormulaError

Domains = Iterable[tuple[str, Sequence[str | int]]]


class Unsolved(Exception):  # noqa: N818 (an answer of the solver, no error)
  """The solver gave up."""


class Solver:
  """z3 with a limit of time, over Booleans and variables of finite domains."""

  def __init__(self, seconds: float, domains: Domains = ()):
    self.z3, self.milliseconds, self.domains = _z3(), max(1, int(1000 * seconds)), dict(domains)
    labels = [v for values in self.domains.values() for v in values if isinstance(v, str)]
    # Labels are numbers apart from the numbers that variables may have.
    least = min(
      (v for values in self.domains.values() for v in values if v not in labels), default=0
    )
    self.labels = {label: least - 1 - i for i, label in enumerate(dict.fromkeys(labels))}

  def within(self, domains: Domains) -> 'Solver':
    """The same limit over these domains."""
    return Solver(self.milliseconds / 1000, domains)

  def satisfiable(self, *terms: Any) -> bool:
    """Whether the terms have a common model, in the domains."""
    solver = self.z3.Solver()
    solver.set('timeout', self.milliseconds)
    solver.add(*terms, *(self._member(name) for name in self.domains))
    found = solver.check()
    if found == self.z3.unknown:
      raise Unsolved
    return found == self.z3.sat

  def value(self, value: str | int) -> int:
    """A domain's value as the number that stands for it."""
    return self.labels[value] if isinstance(value, str) else value

  def _member(self, name: str) -> Any:
    return self.z3.Or([self.z3.Int(name) == self.value(v) for v in self.domains[name]])

  def term(self, formula: Formula) -> Any:
    """The formula in z3."""
    z3, (sign, *parts) = self.z3, formula
    if sign == 'number':
      return z3.IntVal(parts[0])
    if sign == 'name':
      return self._name(parts[0])
    left, *rest = (self.term(part) for part in parts)
    if sign == 'distinct':
      return z3.Distinct(left, *rest)
    logical = sign in ('~', *BINDING)
    sorts = {z3.is_bool(x) for x in (left, *rest)}
    if sorts != {True} if logical else (len(sorts) > 1 or (True in sorts and sign not in '!=')):
      raise FormulaError(f'{sign} between {formula[1:]}')
    if sign == '~':
      return z3.Not(left)
    return self._join(sign, left, rest[0])

  def _join(self, sign: str, a: Any, b: Any) -> Any:
    z3 = self.z3
    match sign:
      case '&':
        return z3.And(a, b)
      case '|':
        return z3.Or(a, b)
      case '->':
        return z3.Implies(a, b)
      case '<->' | '=':
        return a == b
      case '^' | '!=':
        return a != b
      case '+' | '-':
        return a + b if sign == '+' else a - b
      case '<' | '<=':
        return a < b if sign == '<' else a <= b
    return a > b if sign == '>' else a >= b

  def _name(self, name: str) -> Any:
    if name in self.domains:
      return self.z3.Int(name)
    if name in self.labels:
      return self.z3.IntVal(self.labels[name])
    truth = {'true': True, 'false': False}.get(name.casefold())
    return self.z3.Bool(name) if truth is None else self.z3.BoolVal(truth)


def _z3() -> types.ModuleType:
  try:
    import z3
  except ImportError as e:
    raise UserError('logic answers need z3; install it with: pip install z3-solver') from e
  return z3
