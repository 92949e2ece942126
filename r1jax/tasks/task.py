"""What a task is: examples and a grader, shared by SFT, RL, rejection sampling and evaluation.

Splits are disjoint by construction: a question belongs to the split that a hash of its text names,
eval 1/8, sft 1/8, rl 6/8, whatever seed or options made it (`splits.py`).
"""

import dataclasses
import typing
from typing import Any, Literal, Protocol

from r1jax.rewards.outcome import Grade, Outcome

__all__ = ['SPLITS', 'Example', 'Grade', 'Outcome', 'Split', 'Task']

Split = Literal['sft', 'rl', 'eval']
SPLITS: tuple[Split, ...] = typing.get_args(Split)


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem. `answer` is None where a task has a grader but no single gold.

  `solution` is a worked thought, without tags; only examples of the split 'sft' may carry one.
  `system` is a message before the question, where a chat template has room for one.
  """

  id: str
  question: str
  answer: str | None = None
  solution: str | None = None
  system: str | None = None
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@typing.runtime_checkable
class Task(Protocol):
  """Deterministic: the same task gives the same examples in every process."""

  name: str

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples start … start+count−1 of a split; fewer where sft or eval ends; rl never does."""
    ...

  def grade(self, example: Example, completion: str) -> Grade:
    """Outcome, reward and its parts for the text a model wrote after the prompt."""
    ...
