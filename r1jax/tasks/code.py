"""Programming problems with tests, from a JSONL file.

    {"problem": …, "language": "python", "stdin": [["3 4", "7"], …]}      text in, text out
    {"problem": …, "language": "cpp", "calls": [["add(3, 4)", "7"], …]}   expression, value's repr

Answers are run by `rewards.code` in the sandbox of this machine; where there is none, the task is
refused when it is built. `language` is python, c or cpp, and python where it is not said.
"""

import dataclasses
import typing

from r1jax.rewards import code, compose
from r1jax.rewards.sandbox import Bubblewrap, Limits
from r1jax.tasks.rows import Row, RowsTask

_LANGUAGES = typing.get_args(code.Language)
_EXPECTED = (
  '{"problem": "…", "stdin": [["input", "output"], …]} or {…, "calls": [["f(1)", "2"], …]}, all '
  f'texts, and "language" of {", ".join(_LANGUAGES)}'
)


@dataclasses.dataclass(frozen=True)
class Code:
  """Path of a JSONL file of problems, bounds of a run, and the weights.

  limits.wall bounds all tests of an answer; verifier.seconds of the experiment must be longer.
  """

  path: str
  limits: Limits = Limits(cpu=2.0, wall=4.0)
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)


class CodeTask(RowsTask):
  """A `Task` whose answers are programs."""

  def __init__(self, spec: Code):
    box = Bubblewrap()
    super().__init__(
      spec.path, _EXPECTED, _fits,
      lambda row, answer: code.verify(answer, tests(row), language(row), spec.limits, box),
      spec.weights,
    )  # fmt: skip
    for each in sorted({language(row) for row in self._rows}):
      code.check(each, box)


def tests(row: Row) -> code.Tests:
  """The tests of a row."""
  pairs = {kind: tuple(map(tuple, row.get(kind, ()))) for kind in ('stdin', 'calls')}
  return code.Tests(**pairs)


def language(row: Row) -> code.Language:
  """The language of a row's answers."""
  return row.get('language', 'python')


def _fits(row: Row) -> bool:
  given = [row[kind] for kind in ('stdin', 'calls') if row.get(kind)]
  return (
    len(given) == 1
    and language(row) in _LANGUAGES
    and isinstance(given[0], list)
    and all(
      isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
      for pair in given[0]
    )
  )
