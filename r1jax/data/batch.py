"""Model batches from rows of tokens. Every shift happens here, on the host, once.

A row of tokens t_0..t_{n-1} gives inputs t_0..t_{n-2} and targets t_1..t_{n-1}; depth d of
multi-token prediction sees the token d+1 ahead of the input (`ahead[d]`) and predicts the one
behind it (`ahead_targets[d]`). Several rows may lie in one line of the batch as segments 1, 2, …;
positions restart in each. 0 is padding. No shift crosses a segment.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from r1jax.model.transformer import Inputs


class Row(NamedTuple):
  """Tokens of one sequence and how much each counts as a target (0 on prompts)."""

  tokens: Sequence[int]
  weights: Sequence[float]


class Batch(NamedTuple):
  """Inputs with targets and their weights; the same for each prediction depth."""

  inputs: Inputs
  targets_BL: jax.Array
  weights_BL: jax.Array
  ahead_targets: tuple[jax.Array, ...] = ()
  ahead_weights: tuple[jax.Array, ...] = ()


def batch(lines: Sequence[Sequence[Row]], length: int, depths: int) -> Batch:
  """Lays rows into lines of `length` inputs; a line too full is an error naming it."""
  B = len(lines)
  ints, floats = (
    (lambda: np.zeros((B, length), np.int32)),
    (lambda: np.zeros((B, length), np.float32)),
  )
  tokens, positions, segments = ints(), ints(), ints()
  targets, weights = [ints() for _ in range(depths + 1)], [floats() for _ in range(depths + 1)]
  ahead = [ints() for _ in range(depths)]
  for b, line in enumerate(lines):
    at = 0
    for s, row in enumerate(line, 1):
      n = len(row.tokens) - 1
      if at + n > length:
        raise ValueError(
          f'line {b} holds {at + n} inputs, the batch {length}; pack fewer rows or raise length'
        )
      t, w = np.asarray(row.tokens, np.int32), np.asarray(row.weights, np.float32)
      here = slice(at, at + n)
      tokens[b, here], positions[b, here], segments[b, here] = t[:-1], np.arange(n), s
      for d in range(depths + 1):
        m = max(n - d, 0)  # targets that lie within the segment
        targets[d][b, at : at + m], weights[d][b, at : at + m] = t[1 + d :], w[1 + d :]
        if d < depths:
          ahead[d][b, at : at + m] = t[1 + d :]
      at += n
  inputs = Inputs(tokens, positions, segments, tuple(ahead))
  return Batch(inputs, targets[0], weights[0], tuple(targets[1:]), tuple(weights[1:]))


def sequences(segments_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
  """Number of sequences in a batch: where a segment is at its position 0."""
  return ((segments_BL > 0) & (positions_BL == 0)).sum()
