"""Word problems with a final answer, from a JSONL file: {"problem": …, "answer": …, "solution": …}.

Answers are graded by `rewards.maths`: texts, numbers, then symbolic equality.
"""

import dataclasses

from r1jax.rewards import compose, maths
from r1jax.tasks.rows import RowsTask, is_text

_EXPECTED = '{"problem": "…", "answer": "…"}, both texts; numbers go in quotes'


@dataclasses.dataclass(frozen=True)
class Maths:
  """Path of a JSONL file of problems, where completions have their answer, and the weights."""

  path: str
  form: compose.Form = 'tagged'
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)


class MathsTask(RowsTask):
  """A `Task` whose answers are numbers and expressions."""

  def __init__(self, spec: Maths):
    super().__init__(
      spec.path,
      _EXPECTED,
      lambda row: is_text(row.get('answer')),
      lambda row, answer: maths.verify(row['answer'], answer),
      spec.weights,
      spec.form,
    )
