"""Problems of a JSONL file, one object a line, each with what its verifier needs to know.

`problem` is the question; `solution`, if there is one, is a worked thought in the split 'sft'.
The file is held in memory; what a line lacks is said with its number, before anything starts.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards import compose
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.splits import Splits
from r1jax.tasks.task import Example, Grade, Split

Row = dict[str, Any]


class RowsTask:
  """A `Task` over one file.

  expected: what a row must look like, for errors; fits: whether one does.
  verify: the outcome of an answer to a row's problem; run it in a pool, which limits its time.
  """

  def __init__(
    self,
    path: str,
    expected: str,
    fits: Callable[[Row], bool],
    verify: Callable[[Row, str], Outcome],
    weights: compose.RewardWeights,
    form: compose.Form = 'tagged',
  ):
    self._rows = _read(path, expected, fits)
    self._verify, self._weights, self._form = verify, weights, form
    self.name = pathlib.Path(path).stem
    self._splits = Splits(lambda i: self._rows[i]['problem'], size=len(self._rows))

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples of a split; 'rl' starts again at the file's end."""
    return [self._example(i, split) for i in self._splits.indices(split, start, count)]

  def grade(self, example: Example, completion: str) -> Grade:
    """Grades the answer of a completion."""

    def check(answer: str) -> tuple[Outcome, float]:
      outcome = self._verify(example.meta, answer)
      return outcome, float(outcome is Outcome.CORRECT)

    return compose.judge(completion, self._weights, check, self._form)

  def _example(self, index: int, split: Split) -> Example:
    row = self._rows[index]
    solution = row.get('solution') if split == 'sft' else None
    return Example(f'{self.name}/{index}', row['problem'], row.get('answer'), solution, meta=row)


def is_text(x: Any) -> bool:
  """A text that says something."""
  return isinstance(x, str) and bool(x.strip())


def _read(path: str, expected: str, fits: Callable[[Row], bool]) -> list[Row]:
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').split('\n')
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'cannot read {path} ({e}); expected a JSONL file of problems') from e
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as e:
      raise UserError(f'{path} line {number} is not JSON ({e}); expected one object a line') from e
    if not isinstance(row, dict) or not is_text(row.get('problem')) or not fits(row):
      raise UserError(f'{path} line {number}: expected {expected}')
    rows.append(row)
  if not rows:
    raise UserError(f'{path} holds no problems; expected one JSON object a line')
  return rows
