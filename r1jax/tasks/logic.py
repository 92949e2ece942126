"""Logic problems with formulas that z3 decides, from a JSONL file, of three kinds:

    {"problem": …, "constraints": ["a = 1 <-> b = 0", …]}           which assignment solves it?
    {"problem": …, "premises": ["p -> q", "p"], "conclusion": "q"}  True, False or Unknown?
    {"problem": …, "premises": ["p -> q", "p"]}                     name a formula that follows

Beside constraints: "domains": {"a": [1, 2, 3]} for variables that are not Boolean, "roles":
["knight", "knave"] for the words that mean true and false, "asked": ["a"] for the variables that
an answer must name. Beside a conclusion: "three": false asks for Yes or No. Formulas are those of
`rewards.logic.formulas`; one that cannot be read is an error when the task is built. A puzzle
without or with several solutions says nothing certain: every answer to it is unparseable.
"""

import dataclasses
from typing import Any

from r1jax.rewards import compose, logic
from r1jax.rewards.logic.formulas import FormulaError, parse
from r1jax.tasks.rows import Row, RowsTask, is_text

_EXPECTED = (
  '{"problem": "…", "constraints": ["a -> b", …]} with "domains", "roles" and "asked" if needed, '
  'or {…, "premises": ["p", …], "conclusion": "q"}, "three" true or false, or premises alone; '
  'formulas that can be read'
)
Problem = logic.Puzzle | logic.Entailment | logic.Derivation


@dataclasses.dataclass(frozen=True)
class Logic:
  """Path of a JSONL file of problems, seconds that z3 may take over an answer, and the weights."""

  path: str
  seconds: float = 2.0
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)

  def __post_init__(self) -> None:
    if self.seconds <= 0:
      raise ValueError(f'seconds is {self.seconds}; it must be > 0')


class LogicTask(RowsTask):
  """A `Task` whose answers a solver checks."""

  def __init__(self, spec: Logic):
    verify = lambda row, answer: logic.verify(problem(row), answer, spec.seconds)
    super().__init__(spec.path, _EXPECTED, _fits, verify, spec.weights)


def problem(row: Row) -> Problem:
  """What a row asks, for the verifier."""
  if 'constraints' in row:
    domains = tuple((name, tuple(values)) for name, values in row.get('domains', {}).items())
    roles, asked = tuple(row.get('roles', ('true', 'false'))), tuple(row.get('asked', ()))
    return logic.Puzzle(tuple(row['constraints']), domains, roles, asked)
  premises = tuple(row['premises'])
  if 'conclusion' in row:
    return logic.Entailment(premises, row['conclusion'], row.get('three', True))
  return logic.Derivation(premises)


def _fits(row: Row) -> bool:
  if ('constraints' in row) == ('premises' in row):
    return False
  if 'constraints' in row:
    return (
      _formulas(row['constraints'])
      and isinstance(row.get('domains', {}), dict)
      and all(map(_values, row.get('domains', {}).values()))
      and _texts(row.get('roles', ['true', 'false']))
      and len(row.get('roles', 'ab')) == 2
      and _texts(row.get('asked', []))
    )
  conclusion = [row['conclusion']] if 'conclusion' in row else []
  return (
    _formulas(row['premises'])
    and (not conclusion or _formulas(conclusion))
    and isinstance(row.get('three', True), bool)
  )


def _formulas(x: Any) -> bool:
  if not _texts(x) or not x:
    return False
  try:
    return all(parse(text) for text in x)
  except FormulaError:
    return False


def _texts(x: Any) -> bool:
  return isinstance(x, list) and all(map(is_text, x))


def _values(x: Any) -> bool:
  whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
  return isinstance(x, list) and bool(x) and all(is_text(v) or whole(v) for v in x)
