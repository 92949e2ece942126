"""Rewards from parts: R = Σ_k w_k · part_k. Every part is kept for the log, those of weight 0 too.

R1's rule reward is accuracy + format of equal weight; its language reward is added directly.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import THINK_CLOSE, THINK_OPEN, Spans, spans
from r1jax.rewards import language
from r1jax.rewards.outcome import Grade, Outcome

# How a completion gives its answer: between R1's tags, or as the last number behind the thought,
# for models that were never taught the tags.
Form = Literal['tagged', 'last_number']
_NUMBER = re.compile(r'(?<![\w.)])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)')


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


def last_number(completion: str) -> Spans:
  """The last number behind the thought, if it is closed; well formed where there is one."""
  before, closed, after = completion.rpartition(THINK_CLOSE)
  found = [] if THINK_OPEN in after else _NUMBER.findall(after)
  answer = found[-1].replace(',', '').replace('−', '-') if found else None
  return Spans(before.removeprefix(THINK_OPEN) if closed else None, answer, answer is not None)


def judge(
  completion: str,
  weights: RewardWeights,
  check: Callable[[str], tuple[Outcome, float]],
  form: Form = 'tagged',
) -> Grade:
  """Grades a completion; `check` gives outcome and accuracy of an answer.

  The answer is read from completions of the form only; any other is UNPARSEABLE, accuracy 0.
  """
  span = spans(completion) if form == 'tagged' else last_number(completion)
  outcome, accuracy = Outcome.UNPARSEABLE, 0.0
  if span.well_formed and span.answer is not None and span.answer.strip():
    outcome, accuracy = check(span.answer.strip())
  parts = {
    'accuracy': accuracy,
    'format': float(span.well_formed),
    # Without a thought there is nothing consistent: a missing one must not earn the reward.
    'language': language.consistency(span.think, weights.target) if span.think is not None else 0.0,
  }
  return Grade(outcome, compose(weights.table(), parts), parts, open=form == 'last_number')
