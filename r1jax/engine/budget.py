"""What one request may spend on its thought, and how its answer is still had in time.

    [<think>] thought </think> <answer> answer </answer>
    |--- thinking, steps ---|         |--- reserve ---|
    |------------------------ limit, seconds -----------------------|

A thought ends when the model closes it, or by whichever comes first: `thinking` tokens; `steps`
steps; a geometric mean probability of the last `window` tokens of at least `confidence`,

    exp(1/window · Σ log p) ≥ confidence,

looked at every `stride` tokens from `least` on (1 − confidence is the error that is borne); or the
moment behind which the limit or the time would hold less than the forced tags and `reserve` tokens.
Then the tags `</think><answer>` are written for the model and it answers (budget forcing,
arXiv 2501.19393). When limit or time cut the answer itself, `fallback` says what is handed out:
  answer  what is written, closed by `</answer>`
  cut     what is written
  refuse  the thought and an empty answer

Who keeps to it while a completion is written: engine/watch.py. No jax.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from r1jax.core.text import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from r1jax.tokenizers.tokenizer import Tokenizer

Ended = Literal[
  'stop', 'length', 'thinking budget', 'steps', 'confidence', 'time', 'refused', 'cancelled'
]


@dataclasses.dataclass(frozen=True)
class Budget:
  """Bounds of one request; None is no bound.

  thinking: tokens of the thought. steps: of the thought, texts that are not blank and end in
  `separator`. seconds: from the request's arrival to the end of its answer. reserve: tokens kept
  for the answer, of the limit and of the time (of the time one at least).
  """

  thinking: int | None = None
  steps: int | None = None
  confidence: float | None = None
  seconds: float | None = None
  reserve: int = 32
  fallback: Literal['answer', 'cut', 'refuse'] = 'answer'
  separator: str = '\n'
  window: int = 32
  least: int = 64
  stride: int = 16

  def __post_init__(self):
    bounds = {'thinking': 0, 'steps': 0, 'reserve': 0, 'least': 0, 'window': 1, 'stride': 1}
    for name, least in bounds.items():
      if (given := getattr(self, name)) is not None and given < least:
        raise ValueError(f'{name}={given}; expected {least} or more')
    if self.confidence is not None and not 0 < self.confidence <= 1:
      raise ValueError(f'confidence={self.confidence}; expected a probability above 0, at most 1')
    if self.seconds is not None and not 0 < self.seconds < math.inf:
      raise ValueError(f'seconds={self.seconds}; expected a finite time above 0')
    if not self.separator:
      raise ValueError("separator=''; expected the text that ends a step, such as '\\n'")
    if self.fallback not in ('answer', 'cut', 'refuse'):
      raise ValueError(f"fallback='{self.fallback}'; expected answer, cut or refuse")


@dataclasses.dataclass(frozen=True)
class Marks:
  """Ids by which a completion's parts are told apart, and the text of one id.

  tags: the thought's end, the answer's beginning, the answer's end, in the order in which they are
  written; () for one that the model's format lacks, or that the prompt holds already.
  """

  tags: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
  stops: frozenset[int]
  piece: Callable[[int], str]


class Continue(NamedTuple):
  """Decode at most `limit` tokens, one or more, then observe them."""

  limit: int


class Force(NamedTuple):
  """Append ids behind `at` tokens of the completion, compute them, and go on."""

  at: int
  ids: tuple[int, ...]
  why: Ended


class End(NamedTuple):
  """Append ids behind `at` tokens of the completion, which is whole then; nothing reads them."""

  at: int
  ids: tuple[int, ...]
  why: Ended


Action = Continue | Force | End


class Used(NamedTuple):
  """What a completion used, and what ended it and its thought; None for what has not ended.

  cause: what `ended` came from: the same, or what a refusal was for. thought: 'stop' where the
  model itself closed it. tokens: of the completion, forced ones included. thinking: without tags.
  """

  ended: Ended | None
  cause: Ended | None
  thought: Ended | None
  thinking: int
  steps: int
  tokens: int
  seconds: float


def marks(tok: Tokenizer, answer_tags: bool = True) -> Marks:
  """The marks of a tokenizer; without answer tags the answer is all that follows the thought."""
  close, *rest = (
    tuple(tok.encode_special(tag)) for tag in (THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
  )
  silent = tuple(tok.encode_special(THINK_OPEN))

  @functools.cache
  def piece(i: int) -> str:
    if (i,) == silent:  # the opening tag is no step
      return ''
    return tok.decode([i]) if i < tok.vocab else '\N{REPLACEMENT CHARACTER}'

  return Marks((close, *(rest if answer_tags else ((), ()))), frozenset(tok.stops), piece)
