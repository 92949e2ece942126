"""Rewards from parts: R = Σ_k w_k · part_k. Every part is kept for the log, those of weight 0 too.

R1's rule reward is accuracy + format of equal weight; its language reward is added directly. Beside
these three any part of TEXT_PARTS takes a weight by name, and a user's own parts bring theirs
(`own`). Parts are worth having, penalties are negative: every weight is positive. For PPO:

    RewardWeights(accuracy=0.6, others=(('conciseness', 0.2), ('safety', 0.2)))

Parts that need a sample's siblings are added later, by `group.regrade`. R = 0.7 accuracy + 0.3
diversity is RewardWeights(accuracy=0.7), then GroupWeights(diversity=0.3).
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import THINK_CLOSE, THINK_OPEN, Spans, spans
from r1jax.rewards import contradiction, length, repetition, safety
from r1jax.rewards.language import LANGUAGES, Language, consistency
from r1jax.rewards.outcome import Grade, Outcome

# How a completion gives its answer: between R1's tags, or as the last number behind the thought,
# for models that were never taught the tags.
Form = Literal['tagged', 'last_number']
_NUMBER = re.compile(r'(?<![\w.)])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)')


class Seen(NamedTuple):
  """What a part of one text may look at."""

  completion: str
  spans: Spans
  outcome: Outcome
  budget: int

  @property
  def thought(self) -> str:
    """The thought, or all of a completion that has none."""
    return self.completion if self.spans.think is None else self.spans.think


def _conciseness(seen: Seen) -> float:
  """A right answer's thought within its budget of characters."""
  correct = seen.outcome is Outcome.CORRECT
  return length.budget(len(seen.thought), seen.budget) if correct else 0.0


TEXT_PARTS: Mapping[str, Callable[[Seen], float]] = {
  'conciseness': _conciseness,
  'contradiction': lambda seen: contradiction.penalty(seen.thought, seen.spans.answer),
  'repetition': lambda seen: repetition.penalty(seen.thought),
  'safety': lambda seen: safety.by_rules(seen.completion),
}


@dataclasses.dataclass(frozen=True)
class RewardWeights:
  """Weights of the parts; the language that the language part asks for; others by name.

  others: parts of TEXT_PARTS, (('safety', 0.2), …); they are computed only where they are named.
  budget: characters of a thought that the part 'conciseness' leaves free.
  """

  accuracy: float = 1.0
  format: float = 0.0
  language: float = 0.0
  target: Language = 'en'
  others: tuple[tuple[str, float], ...] = ()
  budget: int = 4_000

  def __post_init__(self):
    if self.target not in LANGUAGES:
      raise UserError(no_such('language', self.target, LANGUAGES))
    names = [name for name, _ in self.others]
    for name in names:
      if name not in TEXT_PARTS:
        raise UserError(no_such('reward part', name, TEXT_PARTS))
      if names.count(name) > 1:
        raise UserError(f"reward part '{name}' has two weights; give it one")
    for name, weight in self.table().items():
      finite(f"the weight of reward part '{name}'", weight)
    if self.budget < 1:
      raise UserError(f'budget={self.budget}; expected at least 1 character')

  def table(self) -> dict[str, float]:
    """Weight by name of part."""
    named = {'accuracy': self.accuracy, 'format': self.format, 'language': self.language}
    return named | dict(self.others)


def finite(what: str, value: object) -> float:
  """The value as a float, if it is a finite number."""
  if not isinstance(value, numbers.Real) or not math.isfinite(value):
    raise UserError(f'{what} is {value!r:.80}; expected a finite number')
  return float(value)


def compose(weights: Mapping[str, float], parts: Mapping[str, float]) -> float:
  """The weighted sum of parts; a weight without its part, or one that is no number, is an error."""
  for name in weights:
    if name not in parts:
      raise UserError(no_such('reward part', name, parts))
  parts = {name: finite(f"reward part '{name}'", value) for name, value in parts.items()}
  return float(sum(w * parts[name] for name, w in weights.items()))


def check_own(weights: RewardWeights, own: Mapping[str, tuple[float, object]]) -> None:
  """A user's parts have weights that are numbers, and names that no other part has."""
  for name, (weight, _) in own.items():
    finite(f"the weight of reward part '{name}'", weight)
    if name in weights.table():
      raise UserError(f"reward part '{name}' is there already; give yours another name")


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
  own: Mapping[str, tuple[float, float]] | None = None,
) -> Grade:
  """Grades a completion; `check` gives outcome and accuracy of an answer.

  The answer is read from completions of the form only; any other is UNPARSEABLE, accuracy 0.
  own: parts of the caller, name -> (weight, value).
  """
  span = spans(completion) if form == 'tagged' else last_number(completion)
  outcome, accuracy = Outcome.UNPARSEABLE, 0.0
  if span.well_formed and span.answer is not None and span.answer.strip():
    outcome, accuracy = check(span.answer.strip())
  own = own or {}
  check_own(weights, own)
  seen = Seen(completion, span, outcome, weights.budget)
  parts = {
    'accuracy': accuracy,
    'format': float(span.well_formed),
    # Without a thought there is nothing consistent: a missing one must not earn the reward.
    'language': consistency(span.think, weights.target) if span.think is not None else 0.0,
  }
  parts |= {name: TEXT_PARTS[name](seen) for name, _ in weights.others}
  parts |= {name: value for name, (_, value) in own.items()}
  table = weights.table() | {name: weight for name, (weight, _) in own.items()}
  return Grade(outcome, compose(table, parts), parts, open=form == 'last_number')
