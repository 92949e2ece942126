"""How leaves are cut for storage, and who converts which cut.

    bf16[58, 256, 7168, 2048] -> chunks of [1, 1, 7168, 2048]     one (layer, expert)
    bf16[129280, 7168]        -> chunks of [4618, 7168]           rows, 64 MiB at most

Axes are cut from the left: into single rows while a row is larger than FLOOR, then, once, into as
many rows as CAP holds. So a chunk is one stretch of its array in memory order, large enough to be
worth a read and small enough that a few of them fit anywhere; a device that holds some experts
reads those and no others.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import jax

FLOOR, CAP = 2 << 20, 64 << 20  # bytes
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A cut of a leaf: its number, where it lies, the linear position of its first element."""

  leaf: str
  number: int
  index: tuple[slice, ...]
  first: int
  nbytes: int

  @property
  def shape(self) -> tuple[int, ...]:
    """The axes' lengths."""
    return tuple(part.stop - part.start for part in self.index)


def grid(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
  """The shape of an array's chunks; the last along an axis may hold less."""
  row = math.prod(shape) * itemsize
  for axis, size in enumerate(shape):
    row //= size
    if row <= FLOOR:
      count = -(-size // max(CAP // row, 1))
      rows = -(-size // count)  # evenly: a chunk takes its full size on disk
      return (*[1] * axis, rows, *shape[axis + 1 :])
  return ()


def cut(leaf: str, array: jax.ShapeDtypeStruct, chunk: Sequence[int]) -> Iterator[Chunk]:
  """The chunks of a leaf, in memory order."""
  counts = [range(-(-size // step)) for size, step in zip(array.shape, chunk, strict=True)]
  strides = [math.prod(array.shape[axis + 1 :]) for axis in range(len(array.shape))]
  for number, place in enumerate(itertools.product(*counts)):
    starts = [at * step for at, step in zip(place, chunk)]
    index = tuple(
      slice(start, min(start + step, size)) for start, step, size in zip(starts, chunk, array.shape)
    )
    first = sum(start * stride for start, stride in zip(starts, strides))
    size = math.prod(part.stop - part.start for part in index)
    yield Chunk(leaf, number, index, first, size * array.dtype.itemsize)


def stored(arrays: Mapping[str, jax.ShapeDtypeStruct]) -> int:
  """Bytes on disk of all chunks, the last of an axis at full size."""
  total = 0
  for array in arrays.values():
    chunk = grid(array.shape, array.dtype.itemsize)
    counts = [-(-size // step) for size, step in zip(array.shape, chunk)]
    total += math.prod(counts) * math.prod(chunk) * array.dtype.itemsize
  return total


def share(chunks: Sequence[Chunk], part: int, parts: int) -> list[Chunk]:
  """The part-th of `parts` stretches of about equal bytes: neighbours lie in the same files."""
  total = sum(chunk.nbytes for chunk in chunks)
  starts = itertools.accumulate((chunk.nbytes for chunk in chunks), initial=0)
  return [chunk for chunk, start in zip(chunks, starts) if start * parts // total == part]
