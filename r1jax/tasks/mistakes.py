"""Worked solutions with one mistake in them: what is right and what is wrong is known.

    4+3=7            4+3=7
    7-2=5      →     7-2=6          the step with the mistake
    5+5=10           5+5=10         left as it was, so no longer a conclusion
    10               10

One number that a step computes (it stands behind '=') is off by 1, 2 or 3. What follows it is left
as it was; where the number is the answer itself, the answer changes with it. Which one, and by how
much, follows from a hash of the example's id. Steps are the lines of the thought and, last, the
answer; those before the mistake are sound, that one and all after it are not (Uesato et al., arXiv
2211.14275: a step counts as wrong from the first error on).
"""

import random
import re
from typing import NamedTuple

from r1jax.core.errors import UserError
from r1jax.tasks.splits import digest
from r1jax.tasks.task import Example

_COMPUTED = re.compile(r'=\s*(-?\d+)(?!\.?\d)')
_OFF = (-3, -2, -1, 1, 2, 3)


class Mistake(NamedTuple):
  """A worked solution gone wrong at step `step`, counted from 0."""

  solution: str
  answer: str
  step: int


def steps(solution: str, answer: str) -> list[str]:
  """The lines of a thought and the answer."""
  return [*solution.split('\n'), answer]


def labels(mistake: Mistake) -> list[float]:
  """1 for each step before the mistake, 0 from there on."""
  count = len(steps(mistake.solution, mistake.answer))
  return [float(i < mistake.step) for i in range(count)]


def mistaken(example: Example) -> Mistake:
  """The example's solution with a mistake; UserError where no step computes a number."""
  solution, answer = example.solution, example.answer
  found = list(_COMPUTED.finditer(solution or ''))
  if not found or answer is None:
    raise UserError(
      f'problem {example.id}: its worked solution {solution!r} computes no number, expected steps '
      "like '4+3=7' and an answer; mistakes are made of such tasks (chain_sum), others need records"
    )
  chance = random.Random(digest(example.id))
  number = chance.choice(found)
  wrong = str(int(number[1]) + chance.choice(_OFF))
  begin, end = number.span(1)
  concludes = number is found[-1] and answer.strip() == number[1]
  return Mistake(
    solution[:begin] + wrong + solution[end:],
    wrong if concludes else answer,
    solution.count('\n', 0, begin),
  )
