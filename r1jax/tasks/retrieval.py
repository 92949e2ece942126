"""One fact among many, asked for at the end: what a model finds in a long context.

    d4; q0; k3; d4; b9; …     `length` characters of facts, four each
    k?                        thought k3, answer 3

Keys are letters, values digits. The asked key occurs once; the others may come back with the same
value, so that the facts alone, read as text, teach to look up. A fact has punctuation right behind
its value: a token that a table of key tokens holds (tokenizers/properties.py), and from which a
window of three tokens sees the whole fact. Through n layers that see the last w tokens a fact is
known up to n·(w − 1) tokens further on; beyond that, one answer in ten is right.

`meta` holds the needle ('k3') and its distance: characters from its value to the question's end.
"""

import dataclasses
import random
import string

from r1jax.rewards import compose, exact
from r1jax.rewards.outcome import Outcome
from r1jax.tasks.splits import Splits
from r1jax.tasks.task import Example, Grade, Split

_FACT = len('k3; ')


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Characters of facts in a question, and the weights."""

  length: int = 256
  seed: int = 0
  weights: compose.RewardWeights = dataclasses.field(default_factory=compose.RewardWeights)

  def __post_init__(self) -> None:
    if self.length < _FACT or self.length % _FACT:
      raise ValueError(
        f'length={self.length}; expected a multiple of {_FACT}, the characters of a fact'
      )


class RetrievalTask:
  """A `Task` without end; its answers are one digit."""

  name = 'retrieval'

  def __init__(self, spec: Retrieval):
    self._spec = spec
    self._splits = Splits(lambda i: self._example(i).question)

  def examples(self, split: Split, start: int, count: int) -> list[Example]:
    """Examples of a split; eval and sft hold no question twice."""
    found = [self._example(i) for i in self._splits.indices(split, start, count)]
    if split != 'sft':
      return found
    return [dataclasses.replace(e, solution=e.meta['needle']) for e in found]

  def grade(self, example: Example, completion: str) -> Grade:
    """Whether the answer of a completion is the value."""

    def check(answer: str) -> tuple[Outcome, float]:
      outcome = exact.verify(example.answer, answer)
      return outcome, float(outcome is Outcome.CORRECT)

    return compose.judge(completion, self._spec.weights, check)

  def _example(self, index: int) -> Example:
    chance = random.Random(f'{self._spec.seed}/{index}')
    count = self._spec.length // _FACT
    asked, *others = chance.sample(string.ascii_lowercase, len(string.ascii_lowercase))
    values = dict(zip((asked, *others), chance.choices(string.digits, k=1 + len(others))))
    keys, at = chance.choices(others[: count // 2 + 1], k=count), chance.randrange(count)
    keys[at] = asked
    return Example(
      f'{self.name}/{self._spec.seed}/{index}',
      ''.join(f'{key}{values[key]}; ' for key in keys) + f'\n{asked}?',
      values[asked],
      meta={
        'needle': asked + values[asked],
        'distance': (count - at) * _FACT - len(asked) + len(f'\n{asked}?'),
      },
    )
