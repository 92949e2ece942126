"""Rewards from parts: R = Σ_k w_k · part_k. Every part is kept for the log, those of weight 0 too.

R1's rule reward is accuracy + format of equal weight; its language reward is added directly.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import spans
from r1jax.rewards import language
from r1jax.rewards.outcome import Grade, Outcome


@dataclasses.dataclass(frozen=True)
class RewardWeights:
  """Weights of the parts, and the language ('en' | 'zh') that the language part asks for."""

  accuracy: float = 1.0
  format: float = 0.0
  language: float = 0.0
  target: Literal['en', 'zh'] = 'en'

  def __post_init__(self):
    if self.target not in language.LANGUAGES:
      raise UserError(no_such('language', self.target, language.LANGUAGES))

  def table(self) -> dict[str, float]:
    """Weight by name of part."""
    return {'accuracy': self.accuracy, 'format': self.format, 'language': self.language}


def compose(weights: Mapping[str, float], parts: Mapping[str, float]) -> float:
  """The weighted sum of parts; a weight without its part is an error."""
  for name in weights:
    if name not in parts:
      raise UserError(no_such('reward part', name, parts))
  return float(sum(w * parts[name] for name, w in weights.items()))


def judge(
  completion: str, weights: RewardWeights, check: Callable[[str], tuple[Outcome, float]]
) -> Grade:
  """Grades a completion; `check` gives outcome and accuracy of an answer.

  The answer is read from well-formed completions only; any other is UNPARSEABLE, accuracy 0.
  """
  span = spans(completion)
  outcome, accuracy = Outcome.UNPARSEABLE, 0.0
  if span.well_formed and span.answer is not None and span.answer.strip():
    outcome, accuracy = check(span.answer.strip())
  parts = {
    'accuracy': accuracy,
    'format': float(span.well_formed),
    # Without a thought there is nothing consistent: a missing one must not earn the reward.
    'language': language.consistency(span.think, weights.target) if span.think is not None else 0.0,
  }
  return Grade(outcome, compose(weights.table(), parts), parts)
