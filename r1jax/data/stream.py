"""An endless, seeded stream of packed batches over a fixed set of rows.

Each epoch is a fresh permutation that depends on (seed, epoch) alone. Lines are filled in order: a
row that no longer fits opens the next line, so that nothing is split and nothing is lost.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.core.errors import UserError
from r1jax.data.batch import Batch, Row, batch


@dataclasses.dataclass(frozen=True)
class Shape:
  """Lines a batch, inputs a line, depths of multi-token prediction."""

  lines: int
  length: int
  depths: int


def order(rows: Sequence[Row], seed: int) -> Iterator[Row]:
  """Epoch after epoch, each in its own order."""
  epoch = 0
  while True:
    yield from (rows[i] for i in np.random.default_rng((seed, epoch)).permutation(len(rows)))
    epoch += 1


def packed(rows: Sequence[Row], shape: Shape, seed: int) -> Iterator[Batch]:
  """Batches for ever; a row longer than a line, or no row at all, is an error at once."""
  if not rows:
    raise UserError('no rows to train on: the task gave no worked solutions for split sft')
  longest = max(len(r.tokens) - 1 for r in rows)
  if longest > shape.length:
    raise UserError(
      f'the longest row has {longest} inputs, a line holds {shape.length}: raise length'
    )
  return _batches(rows, shape, seed)


def _batches(rows: Sequence[Row], shape: Shape, seed: int) -> Iterator[Batch]:
  lines: list[list[Row]] = []
  line: list[Row] = []
  used = 0
  for row in order(rows, seed):
    n = len(row.tokens) - 1
    if used + n > shape.length:
      lines.append(line)
      line, used = [], 0
      if len(lines) == shape.lines:
        yield batch(lines, shape.length, shape.depths)
        lines = []
    line.append(row)
    used += n
