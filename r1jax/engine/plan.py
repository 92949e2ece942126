"""The scheduler's words: sizes, requests, how far each is, and what to do next. Plain Python."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the engine, all 1 or more.

  slots: rows of the decode batch. pages: of the pool, of `page` positions each. longest: tokens of
  a prompt and its completion. chunk: tokens that one plan fills, over all sequences (of a part of
  the mesh). burst: tokens that one plan decodes a sequence. reuse: whether prefixes are shared.
  patience: steps for which the batch may on average stand empty, at the end of a burst while others
  wait, before it is cut.
  """

  slots: int
  pages: int
  page: int
  longest: int
  chunk: int = 512
  burst: int = 16
  reuse: bool = True
  patience: float = 0.0

  def __post_init__(self):
    for name in ('slots', 'pages', 'page', 'longest', 'chunk', 'burst'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)}; expected 1 or more')


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for: at most `limit` tokens behind the prompt; a higher priority goes first."""

  id: int
  prompt: tuple[int, ...]
  limit: int
  priority: int = 0
  arrived: float = 0.0

  @property
  def positions(self) -> int:
    """Positions that its cache can come to hold: all but the last token's, which is never read."""
    return len(self.prompt) + self.limit - 1


@dataclasses.dataclass(eq=False)
class Sequence:
  """A request and how far it is.

  tokens: the prompt and what was written. computed: positions whose cache entries are valid; when
  decoding, all but the newest token's. reused: positions that were found instead of computed, over
  all admissions. filling: a chunk is next, not a burst. shared: its pages may be published.
  """

  request: Request
  tokens: list[int]
  pages: list[int] = dataclasses.field(default_factory=list)
  computed: int = 0
  slot: int | None = None
  reused: int = 0
  filling: bool = True
  shared: bool = True

  @property
  def written(self) -> list[int]:
    """The completion so far."""
    return self.tokens[len(self.request.prompt) :]

  @property
  def count(self) -> int:
    """Tokens of the completion so far."""
    return len(self.tokens) - len(self.request.prompt)

  @property
  def left(self) -> int:
    """Tokens that it may still write."""
    return len(self.request.prompt) + self.request.limit - len(self.tokens)

  @property
  def rank(self) -> tuple[int, float, int]:
    """Its place in the order, the first one lowest."""
    return -self.request.priority, self.request.arrived, self.request.id


class Chunk(NamedTuple):
  """Tokens to compute from position `start` on; behind the last ones a token is sampled."""

  slot: int
  id: int
  start: int
  tokens: tuple[int, ...]
  last: bool


class Plan(NamedTuple):
  """One step: chunks to compute, slots to decode by up to `burst` tokens, ids that lost theirs."""

  prefill: tuple[Chunk, ...]
  decode: tuple[int, ...]
  burst: int
  preempted: tuple[int, ...]
