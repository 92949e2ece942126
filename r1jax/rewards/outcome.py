"""What a verifier says: one of four outcomes, and a reward with the parts it was made of."""

import dataclasses
import enum


class Outcome(enum.Enum):
  """UNPARSEABLE: no answer, or an answer or gold that cannot be read. It is never CORRECT."""

  CORRECT = 'correct'
  WRONG = 'wrong'
  UNPARSEABLE = 'unparseable'
  TIMEOUT = 'timeout'


@dataclasses.dataclass(frozen=True)
class Grade:
  """`reward` is what RL maximizes; `parts` are its unweighted terms, for the log.

  open: nothing in the text closes its answer, so it counts only if the completion ended by itself.
  """

  outcome: Outcome
  reward: float
  parts: dict[str, float] = dataclasses.field(default_factory=dict)
  open: bool = False
