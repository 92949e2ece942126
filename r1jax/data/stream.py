"""An endless stream of packed batches that is a function of its position.

A batch has `lines` lines; shard s of S owns lines [s·lines/S, (s+1)·lines/S) and reads alone:

    document m of shard s      mix.pick(m; seed, s) = (part, j)
    document j of a part       number g = j·S + s of the source's endless sequence, which is its
                               epoch g // N, in that epoch's own order of its N documents
    block                      documents until their inputs fill `block` lines, packed best fit, in
                               shuffled lines, which are handed out one after another

So what line j of batch b holds depends on (sources, mixture, shape, seed) alone, neither on how
many processes there are nor on which lines they feed, and any position can be taken up again by
reading at most one block a shard. A process reads only the shards whose lines it feeds.

A position is int64 [S, 4], a row a shard: FIRST document of the current block, lines GIVEN of it,
END, the document after it, SKIPPED documents before END. Rows of shards that a process does not run
are −1, so that the elementwise maximum over all processes is the position of the whole.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.core.errors import UserError
from r1jax.data import mix, order
from r1jax.data.batch import Batch, Row, batch
from r1jax.data.mix import Mixture
from r1jax.data.pack import best_fit
from r1jax.data.sources import Source
from r1jax.records.record import RecordError

Position = np.ndarray
FIRST, GIVEN, END, SKIPPED = range(4)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Lines a batch, inputs a line, depths of multi-token prediction."""

  lines: int
  length: int
  depths: int


def merge(positions: Sequence[Position]) -> Position:
  """The position of the whole from those of all processes at the same batch."""
  return np.maximum.reduce(list(positions))


def next_block(position: Position) -> Position:
  """Where a stream of another Shape goes on: documents left in the current blocks are dropped."""
  position = position.copy()
  position[:, FIRST] = position[:, END]
  position[:, GIVEN] = np.minimum(position[:, GIVEN], 0)
  return position


def skipped(position: Position) -> int:
  """Documents that were skipped, in the shards that the position knows."""
  return int(position[:, SKIPPED].clip(0).sum())


class Stream:
  """(batch, position after it) for ever, from the start or from `start`.

  sources: those of mixture.parts, made for shape.length. mine: numbers of the lines that this
  process feeds, None for all; a Batch holds these alone, in ascending order.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    mixture: Mixture,
    shape: Shape,
    seed: int,
    mine: Sequence[int] | None = None,
    start: Position | None = None,
  ):
    self._sources, self._mixture, self._shape, self._seed = sources, mixture, shape, seed
    self._counts = mix.counts(mixture)
    self._mine = sorted({int(line) for line in (range(shape.lines) if mine is None else mine)})
    self._start = None if start is None else np.asarray(start, np.int64)
    self._check()
    self._lines_a_shard = shape.lines // mixture.shards
    self._shards = sorted({line // self._lines_a_shard for line in self._mine})
    self._check_start()

  def __iter__(self) -> Iterator[tuple[Batch, Position]]:
    S, n = self._mixture.shards, self._lines_a_shard
    position = np.full((S, 4), -1, np.int64)
    position[self._shards] = 0 if self._start is None else self._start[self._shards]
    feeds = {s: self._lines(s, *position[s].tolist()) for s in self._shards}
    while True:
      lines = {}
      for s, feed in feeds.items():
        for j in range(s * n, s * n + n):
          lines[j], position[s] = next(feed)
      mine = [lines[j] for j in self._mine]
      yield batch(mine, self._shape.length, self._shape.depths), position.copy()

  def _lines(
    self, s: int, first: int, given: int, end: int, skipped: int
  ) -> Iterator[tuple[list[Row], tuple[int, int, int, int]]]:
    """A shard's lines, each with the position after it."""
    while True:
      lines, after, bad = self._block(s, first)
      skipped += sum(m >= end for m in bad)  # those before `end` are counted in `skipped`
      end = after
      for k in range(given, len(lines)):
        yield lines[k], (first, k + 1, end, skipped)
      first, given = end, 0

  def _block(self, s: int, first: int) -> tuple[list[list[Row]], int, list[int]]:
    """The lines of the block that begins with a document, the next document, the bad ones."""
    length, m = self._shape.length, first
    rows, lengths, inputs, bad, barren = [], [], 0, [], 0
    while inputs < self._mixture.block * length:
      made, error = self._document(s, m)
      bad += [m] if error else []
      barren = 0 if made else barren + 1
      if barren == self._mixture.window:
        raise UserError(f'{barren} documents in a row cannot be used; the last: {error}')
      m += 1
      rows += made
      for row in made:
        lengths.append(len(row.tokens) - 1)
        inputs += lengths[-1]
    packed = best_fit(lengths, length)
    lines = order.shuffled(len(packed), 'lines', self._seed, s, first).tolist()
    return [[rows[i] for i in packed[line]] for line in lines], m, bad

  def _document(self, s: int, m: int) -> tuple[list[Row], RecordError | None]:
    """The rows of document m of a shard, or none and why."""
    part, j = mix.pick(self._counts, m, self._seed, s)
    source = self._sources[part]
    epoch, place = divmod(j * self._mixture.shards + s, len(source))
    i = order.index(place, len(source), 'documents', self._seed, part, epoch)
    try:
      return source.rows(i), None
    except RecordError as error:
      if self._mixture.bad == 'stop':
        raise
      return [], error

  def _check(self) -> None:
    """What a user can mend, before anything is read."""
    S, lines = self._mixture.shards, self._shape.lines
    if len(self._sources) != len(self._mixture.parts):
      raise ValueError(f'{len(self._sources)} sources for {len(self._mixture.parts)} parts')
    empty = [source.name for source in self._sources if not len(source)]
    if empty:
      raise UserError(f'source {empty[0]} has no documents; expected at least one')
    if lines % S:
      raise UserError(f'{lines} lines do not split into {S} shards; lines must be a multiple')
    if not all(0 <= line < lines for line in self._mine):
      raise ValueError(f'mine={self._mine}; expected numbers of {lines} lines')

  def _check_start(self) -> None:
    """The position is of this mixture and covers the shards that run here."""
    if self._start is None:
      return
    S = self._mixture.shards
    if self._start.shape != (S, 4):
      raise UserError(
        f'the data position is of {len(self._start)} shards, the mixture of {S}; '
        f'keep shards={len(self._start)}'
      )
    lacking = [s for s in self._shards if self._start[s, FIRST] < 0]
    if lacking:
      raise ValueError(f'the data position lacks shard {lacking[0]}; merge those of all processes')
