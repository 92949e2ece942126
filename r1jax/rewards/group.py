"""Parts that need the whole group: R_i ← R_i + Σ_k w_k · part_k(group)_i.

A group part is a pure function from the samples of one prompt to a number each. `regrade` adds such
parts to grades that are there, between grading and advantages:

    grades = regrade(grades, texts, GroupWeights(diversity=0.3).parts())   # one prompt
    grades = regrade_all(grades, texts, 16, parts, lengths)                # rows of 16 together

With RewardWeights(accuracy=0.7) in the task the first is R = 0.7 accuracy + 0.3 diversity. A model
of safety comes as a part too, called once a group: {'safety_model': (0.2, judged(score))}. Nothing
here is random, and the order within a group does not matter.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from r1jax.core.errors import UserError, no_such
from r1jax.core.text import spans
from r1jax.rewards import compose, diversity, length, safety
from r1jax.rewards.outcome import Grade, Outcome


class Sample(NamedTuple):
  """One completion of a prompt, its grade and its length in the caller's unit."""

  text: str
  grade: Grade
  length: int


Part = Callable[[Sequence[Sample]], Sequence[float]]
Parts = Mapping[str, tuple[float, Part]]
_SIMILARITY = {'overlap': diversity.overlap, 'jaccard': diversity.jaccard}
_ANSWERED = (Outcome.CORRECT, Outcome.WRONG)
_EARN = {'answered': _ANSWERED, 'correct': (Outcome.CORRECT,)}


@dataclasses.dataclass(frozen=True)
class GroupWeights:
  """Weights of the library's group parts; those of weight 0 are not computed.

  earns: whether any sample with a readable answer is paid for being different, or correct ones.
  grams: tokens of an n-gram, by which samples are compared.
  """

  diversity: float = 0.0
  relative_conciseness: float = 0.0
  similarity: Literal['overlap', 'jaccard'] = 'overlap'
  earns: Literal['answered', 'correct'] = 'answered'
  grams: int = 3

  def __post_init__(self):
    if self.similarity not in _SIMILARITY:
      raise UserError(no_such('similarity', self.similarity, _SIMILARITY))
    if self.earns not in _EARN:
      raise UserError(no_such('kind of sample that earns', self.earns, _EARN))
    if self.grams < 1:
      raise UserError(f'grams={self.grams}; expected at least 1')
    for name in ('diversity', 'relative_conciseness'):
      compose.finite(f"the weight of reward part '{name}'", getattr(self, name))

  def parts(self) -> dict[str, tuple[float, Part]]:
    """What `regrade` takes."""
    known = {
      'diversity': (self.diversity, self._diversity),
      'relative_conciseness': (self.relative_conciseness, relative_conciseness),
    }
    return {name: (weight, part) for name, (weight, part) in known.items() if weight}

  def _diversity(self, samples: Sequence[Sample]) -> list[float]:
    earns = [s.grade.outcome in _EARN[self.earns] for s in samples]
    thoughts = [spans(s.text).think or s.text for s in samples]
    return diversity.diversity(thoughts, earns, self.grams, _SIMILARITY[self.similarity])


def relative_conciseness(samples: Sequence[Sample]) -> list[float]:
  """The part of `length.relative`: the shortest correct sample has 1, wrong ones 0."""
  correct = [s.grade.outcome is Outcome.CORRECT for s in samples]
  return length.relative([s.length for s in samples], correct)


def judged(score: safety.Score, rules: Sequence[safety.Rule] = safety.RULES) -> Part:
  """The part that a model of safety gives, with the rules as a floor."""
  return lambda samples: safety.by_model([s.text for s in samples], score, rules)


def regrade(
  grades: Sequence[Grade],
  texts: Sequence[str],
  parts: Parts,
  lengths: Sequence[int] | None = None,
) -> list[Grade]:
  """New grades of one prompt's samples: group parts weighed, added and kept for the log.

  Lengths are characters of the texts where none (tokens) are given.
  """
  lengths = [len(t) for t in texts] if lengths is None else lengths
  samples = [Sample(*s) for s in zip(texts, grades, lengths, strict=True)]
  values = {name: _values(name, part, samples) for name, (_, part) in parts.items()}
  weights = {name: compose.finite(f"the weight of '{name}'", w) for name, (w, _) in parts.items()}
  new = []
  for i, grade in enumerate(grades):
    mine = {name: v[i] for name, v in values.items()}
    reward = grade.reward + compose.compose(weights, mine)
    new.append(dataclasses.replace(grade, reward=reward, parts={**grade.parts, **mine}))
  return new


def regrade_all(
  grades: Sequence[Grade],
  texts: Sequence[str],
  group: int,
  parts: Parts,
  lengths: Sequence[int] | None = None,
) -> list[Grade]:
  """`regrade` over many prompts, whose samples lie together, `group` of each."""
  if group < 1 or len(grades) % group:
    raise UserError(f'{len(grades)} samples are no whole groups of {group}')
  lengths = [len(t) for t in texts] if lengths is None else lengths
  new = []
  for i in range(0, len(grades), group):
    here = slice(i, i + group)
    new += regrade(grades[here], texts[here], parts, lengths[here])
  return new


def _values(name: str, part: Part, samples: Sequence[Sample]) -> list[float]:
  """What the part says; one number a sample, under a name that no sample's grade has."""
  if any(name in s.grade.parts for s in samples):
    raise UserError(f"reward part '{name}' is there already; give yours another name")
  values = list(part(samples))
  if len(values) != len(samples):
    raise UserError(f"reward part '{name}' gave {len(values)} numbers for {len(samples)} samples")
  return values
