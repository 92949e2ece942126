"""A user's own task: one Python file that defines `task()`.

`task()` returns any object with `name`, `examples` and `grade` (see `Task`), or, shorter,
`from_functions(name, make, grade)`: `make(seed)` writes an example, `grade(example, answer)` judges
the text of its answer. Splits, format and language come with it. More parts of the reward are
functions beside their weights:

    parts={'brief': (0.3, lambda example, completion: 1 / (1 + len(completion)))}   of one text
    group={'spread': (0.3, lambda samples: [...])}     of all samples of a prompt, see `group.Part`

The file is run as code, here and in every worker of the grading pool.
"""

import dataclasses
import importlib.util
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence

from r1jax.core.errors import UserError
from r1jax.rewards import compose
from r1jax.rewards import group as groups
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.splits import Splits
from r1jax.tasks.task import Example, Grade, Split, Task

# A float from a user's grader counts as a solved problem from here on.
_SOLVED = 0.99

OwnPart = Callable[[Example, str], float]


@dataclasses.dataclass(frozen=True)
class File:
  """Path of a Python file with `task()`."""

  path: str


@typing.runtime_checkable
class GroupTask(typing.Protocol):
  """A `Task` that also judges the samples of one prompt together, after each has its grade."""

  def regrade(
    self, grades: Sequence[Grade], texts: Sequence[str], lengths: Sequence[int] | None = None
  ) -> list[Grade]:
    """New grades of one prompt's samples, in their order; lengths are tokens."""
    ...


class FunctionTask:
  """A `Task` made of two functions."""

  def __init__(
    self,
    name: str,
    make: Callable[[int], Example],
    grade: Callable[[Example, str], bool | float | Outcome],
    weights: compose.RewardWeights,
    parts: Mapping[str, tuple[float, OwnPart]],
    group: groups.Parts,
  ):
    compose.check_own(weights, parts)
    compose.check_own(weights, group)
    for part in parts:
      if part in group:
        raise UserError(
          f"reward part '{part}' is of one text and of a group; give one another name"
        )
    self.name = name
    self._make, self._grade, self._weights = make, grade, weights
    self._parts, self._group = parts, group
    self._splits = Splits(lambda i: self._checked(i).question)

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples of a split; only 'sft' keeps its solutions."""
    found = self._splits.indices(split, start, count)
    examples = [dataclasses.replace(self._checked(i), id=f'{self.name}/{i}') for i in found]
    if split == 'sft':
      return examples
    return [dataclasses.replace(e, solution=None) for e in examples]

  def grade(self, example: Example, completion: str) -> Grade:
    """The user's verdict on the answer of a well-formed completion, and the user's parts."""
    check = lambda answer: self._verdict(self._grade(example, answer))
    own = {name: (w, part(example, completion)) for name, (w, part) in self._parts.items()}
    return compose.judge(completion, self._weights, check, own=own)

  def regrade(
    self, grades: Sequence[Grade], texts: Sequence[str], lengths: Sequence[int] | None = None
  ) -> list[Grade]:
    """The grades of one prompt's samples with the user's group parts added."""
    return groups.regrade(grades, texts, self._group, lengths)

  def _checked(self, seed: int) -> Example:
    example = self._make(seed)
    if not isinstance(example, Example) or not isinstance(example.question, str):
      raise UserError(f'task {self.name}: make({seed}) gave {example!r}; expected an Example')
    return example

  def _verdict(self, said: bool | float | Outcome) -> tuple[Outcome, float]:
    if isinstance(said, Outcome):
      return said, float(said is Outcome.CORRECT)
    if isinstance(said, (bool, int, float)) and 0 <= said <= 1:
      return (Outcome.CORRECT if said >= _SOLVED else Outcome.WRONG), float(said)
    raise UserError(
      f'task {self.name}: grade gave {said!r}; expected a bool, a float in [0, 1] or an Outcome'
    )


def from_functions(
  name: str,
  make: Callable[[int], Example],
  grade: Callable[[Example, str], bool | float | Outcome],
  weights: compose.RewardWeights | None = None,
  parts: Mapping[str, tuple[float, OwnPart]] | None = None,
  group: groups.Parts | None = None,
) -> FunctionTask:
  """A task from `make(seed) -> Example` (same seed, same example) and `grade(example, answer)`.

  parts: name -> (weight, function of example and completion). group: name -> (weight, group part).
  """
  weights = weights or compose.RewardWeights()
  return FunctionTask(name, make, grade, weights, parts or {}, group or {})


def load(spec: File) -> Task:
  """Runs the file and returns what its `task()` makes."""
  path = pathlib.Path(spec.path)
  if not path.is_file() or path.suffix != '.py':
    raise UserError(f'no Python file at {path.absolute()}; expected one that defines task()')
  found = importlib.util.spec_from_file_location(f'r1jax_task_{path.stem}', path)
  module = importlib.util.module_from_spec(found)
  sys.modules[found.name] = module  # dataclasses of the file look themselves up there
  try:
    found.loader.exec_module(module)
    if not callable(getattr(module, 'task', None)):
      raise UserError(f'{path} defines no task(); add a function task() that returns a Task')
    task = module.task()
  except UserError:
    raise
  except Exception as e:
    last = traceback.extract_tb(e.__traceback__)[-1]
    raise UserError(
      f'{path} failed: {type(e).__name__}: {e} ({last.filename}:{last.lineno})'
    ) from e
  if not isinstance(task, Task):
    raise UserError(
      f'{path}: task() gave {task!r}; expected an object with name, examples and grade, '
      'such as from_functions(name, make, grade)'
    )
  return task
