"""Multiple choice, from a JSONL file: {"problem": …, "answer": "B", "options": ["…", …]}.

`problem` shows the options as the model is to see them; `options`, if given, are their texts in the
order of the letters, so that an answer may give a text in place of its letter.
"""

import dataclasses

from r1jax.rewards import choice, compose
from r1jax.tasks.rows import Row, RowsTask, is_text

_EXPECTED = '{"problem": "…", "answer": "B"}, with "options": ["…", …] if there are any, all texts'


@dataclasses.dataclass(frozen=True)
class Choice:
  """Path of a JSONL file of questions, and the weights."""

  path: str
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)


class ChoiceTask(RowsTask):
  """A `Task` whose answers are letters."""

  def __init__(self, spec: Choice):
    verify = lambda row, answer: choice.verify(row['answer'], answer, row.get('options', ()))
    super().__init__(spec.path, _EXPECTED, _fits, verify, spec.weights)


def _fits(row: Row) -> bool:
  options = row.get('options', [])
  return is_text(row.get('answer')) and isinstance(options, list) and all(map(is_text, options))
