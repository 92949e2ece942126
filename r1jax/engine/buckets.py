"""Shape buckets: lengths and batches are padded to a few sizes, so that each compiles once.

The sizes are 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, …: the powers of two and the halves between them,
two an octave (27 from 16 to 131,072). Padding n to the next one makes it less than 3/2 of n: at
worst a third of the slots is padding, over lengths that are spread evenly about a seventh. Widths
begin at 16, so that a row below 11 tokens has more. Rows of a batch and slots of a row are padded
each by itself: above that, the worst batch is 9/4 of what was asked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from r1jax.sharding import rules


class Padded(NamedTuple):
  """Rows of one width; those behind the given ones repeat the last.

  A repeated row ends when its twin does, so that no batch runs on for the sake of its padding.
  """

  tokens_BL: np.ndarray
  lengths_B: np.ndarray


def bucket(n: int, least: int = 16) -> int:
  """The smallest size that holds n, and is not below `least`."""
  n = max(n, least)
  two = 1 << (n - 1).bit_length()
  half = 3 * two // 4
  return half if half >= n else two


def pad(rows: Sequence[Sequence[int]], fill: int, shards: int = 1, least: int = 1) -> Padded:
  """Right-pads one row or more to their width's bucket and the batch to its own, times `shards`.

  least: rows to count the batch as, if it has fewer.
  """
  count = shards * bucket(-(-max(len(rows), least) // shards), least=1)
  lengths_B = np.array([len(row) for row in rows], np.int32)
  tokens_BL = np.full((count, bucket(int(lengths_B.max()))), fill, np.int32)
  for to, row in zip(tokens_BL, rows):
    to[: len(row)] = row
  tokens_BL[len(rows) :] = tokens_BL[len(rows) - 1]
  return Padded(tokens_BL, np.pad(lengths_B, (0, count - len(rows)), mode='edge'))


def fit(width: int, slots: int, shards: int = 1) -> int:
  """Rows in `slots`, rounded down to `shards` times a power of two, and at least one a shard."""
  each = max(1, slots // width // shards)
  return shards * (1 << (each.bit_length() - 1))


def batches(lengths: Sequence[int], slots: int, shards: int = 1, more: int = 0) -> list[list[int]]:
  """Indices of rows in batches of one width each, the widest first: what fits not fails early.

  A batch of width L takes as many rows as `fit` at L + `more` slots each.
  """
  by_width: dict[int, list[int]] = {}
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    by_width.setdefault(bucket(lengths[i]), []).append(i)
  made = []
  for width, members in by_width.items():
    count = fit(width + more, slots, shards)
    made += [members[at : at + count] for at in range(0, len(members), count)]
  return made


def shards(mesh: jax.sharding.Mesh | None) -> int:
  """Over how many places a mesh splits the rows of a batch."""
  return 1 if mesh is None else rules.axis_size(rules.ACTIVATIONS['batch'], dict(mesh.shape))
