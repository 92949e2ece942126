"""Word problems with a final answer, from a JSONL file: {"problem": …, "answer": …, "solution": …}.

One object a line; `solution` is optional and is used as a worked thought in the split 'sft'.
Answers are graded by `rewards.maths`: texts, numbers, then symbolic equality.
"""

import dataclasses
import json
import pathlib
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards import compose, maths
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.splits import Splits
from r1jax.tasks.task import Example, Grade, Split


@dataclasses.dataclass(frozen=True)
class Maths:
  """Path of a JSONL file of problems, where completions have their answer, and the weights."""

  path: str
  form: compose.Form = 'tagged'
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)


class MathsTask:
  """A `Task` over one file, held in memory."""

  def __init__(self, spec: Maths):
    self._rows = _read(spec.path)
    self._weights, self._form = spec.weights, spec.form
    self.name = pathlib.Path(spec.path).stem
    self._splits = Splits(lambda i: self._rows[i]['problem'], size=len(self._rows))

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples of a split; 'rl' starts again at the file's end."""
    return [self._example(i, split) for i in self._splits.indices(split, start, count)]

  def grade(self, example: Example, completion: str) -> Grade:
    """Grades the answer of a completion; run it in a pool, which limits its time."""

    def check(answer: str) -> tuple[Outcome, float]:
      outcome = maths.verify(example.answer or '', answer)
      return outcome, float(outcome is Outcome.CORRECT)

    return compose.judge(completion, self._weights, check, self._form)

  def _example(self, index: int, split: Split) -> Example:
    row = self._rows[index]
    solution = row.get('solution') if split == 'sft' else None
    return Example(f'{self.name}/{index}', row['problem'], row['answer'], solution)


def _read(path: str) -> list[dict[str, Any]]:
  """The rows, each with a problem and an answer that are texts; says which line has not."""
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
    texts = isinstance(row, dict) and [row.get('problem'), row.get('answer')]
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
      raise UserError(
        f'{path} line {number}: expected {{"problem": "…", "answer": "…"}}, '
        'both texts; numbers go in quotes'
      )
    rows.append(row)
  if not rows:
    raise UserError(f'{path} holds no problems; expected one JSON object a line')
  return rows
