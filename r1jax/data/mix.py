"""Mixtures of sources with exact proportions: which document comes at a position.

Positions are cut into windows. In each window every part has the same whole number of documents,
its share of the weights by largest remainder, in an order that the key and the window's number fix.
So (part, number within the part) is a function of the position alone: nothing has to be kept to
resume, and a part's numbers run 0, 1, 2, … through all windows.

Shares count documents, not tokens. Cost: one shuffle a window, then O(1) a document.
"""

import dataclasses
import functools
import math
from typing import Literal

import numpy as np

from r1jax.core.config import ConfigError
from r1jax.data.order import Key, shuffled
from r1jax.data.sources import SourceSpec


@dataclasses.dataclass(frozen=True)
class Part:
  """A source and its weight; weights need not add up to one."""

  source: SourceSpec
  weight: float = 1.0

  def __post_init__(self):
    if not 0 < self.weight < math.inf:
      raise ConfigError(f'weight={self.weight}; expected a number above 0')


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What a stage reads.

  window: documents in which every part has exactly its share.
  bad: whether a document that cannot be used stops the run or is skipped and counted.
  block: lines that are packed together; more are fuller, and wait longer for their first batch.
  shards: parts of the stream that are read independently; no more processes can share the reading.
  """

  parts: tuple[Part, ...]
  window: int = 1000
  bad: Literal['stop', 'skip'] = 'stop'
  block: int = 128
  shards: int = 1

  def __post_init__(self):
    if not self.parts:
      raise ConfigError('parts is empty; expected at least one Part(source, weight)')
    for name in ('window', 'block', 'shards'):
      if getattr(self, name) < 1:
        raise ConfigError(f'{name}={getattr(self, name)}; expected 1 or more')
    missing = [i for i, n in enumerate(counts(self)) if not n]
    if missing:
      raise ConfigError(
        f'parts[{missing[0]}] with weight {self.parts[missing[0]].weight} gets no document in a '
        f'window of {self.window}; raise window or the weight'
      )


def counts(mixture: Mixture) -> tuple[int, ...]:
  """Documents of each part in a window: the largest remainders take what rounding down leaves."""
  total = math.fsum(part.weight for part in mixture.parts)
  ideal = [part.weight / total * mixture.window for part in mixture.parts]
  whole = [math.floor(x) for x in ideal]
  by_remainder = sorted(range(len(ideal)), key=lambda i: whole[i] - ideal[i])
  for i in by_remainder[: mixture.window - sum(whole)]:
    whole[i] += 1
  return tuple(whole)


def pick(shares: tuple[int, ...], position: int, *key: Key) -> tuple[int, int]:
  """(part, number within the part) at a position of the endless sequence that the key names."""
  window, place = divmod(position, sum(shares))
  parts, ranks = _window(shares, window, key)
  return parts[place], window * shares[parts[place]] + ranks[place]


@functools.lru_cache(maxsize=64)
def _window(
  counts: tuple[int, ...], number: int, key: tuple[Key, ...]
) -> tuple[list[int], list[int]]:
  """The part at each place of a window, and how many of the same part come before it."""
  order = shuffled(sum(counts), 'window', number, *key)
  parts = np.repeat(np.arange(len(counts)), counts)[order]
  ranks = np.empty_like(parts)
  for part, count in enumerate(counts):
    ranks[parts == part] = np.arange(count)
  return parts.tolist(), ranks.tolist()
