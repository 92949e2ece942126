"""Named tensors in a file of whatever format, read by slice, in torch's axis order (rows first).

A slice of a row-major tensor is a number of runs of bytes that lie together: one for a whole tensor
or a range of its rows, one a row for a range of columns. Each run is one `preadv` into its place in
the result, so nothing is read or copied that was not asked for, threads share nothing, and a bad
disk is an OSError (through a mapped file it would be a SIGBUS, and the mapped pages would count as
resident memory). Cost: 8 GB/s from the page cache on one core for a whole tensor, 1 us a run.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from r1jax.core.errors import UserError

LFS = b'version https://git-lfs'
Index = Sequence[slice]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """What a tensor is (dtypes beyond numpy's are ml_dtypes) and the path of the file it is in."""

  dtype: np.dtype
  shape: tuple[int, ...]
  file: str

  def __str__(self) -> str:
    return f'{self.dtype}{[*self.shape]}'


class Tensors(Protocol):
  """A collection of named tensors."""

  table: Mapping[str, Tensor]

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """A slice of a tensor, step 1; axes that `index` does not reach are read whole."""


def bounds(index: Index, shape: Sequence[int]) -> tuple[slice, ...]:
  """The index with a slice for every axis, starts and stops within the shape."""
  if len(index) > len(shape) or any(part.step not in (None, 1) for part in index):
    raise ValueError(f'{[*index]} is no index into {[*shape]}: a slice of step 1 an axis, at most')
  parts = [*index, *[slice(None)] * (len(shape) - len(index))]
  ends = [part.indices(size)[:2] for part, size in zip(parts, shape, strict=True)]
  return tuple(slice(start, max(start, stop)) for start, stop in ends)


def read_slice(
  file: str, offset: int, dtype: np.dtype, shape: Sequence[int], index: Index = ()
) -> np.ndarray:
  """The slice of a row-major tensor whose first byte is at `offset` of the file."""
  index, dtype = bounds(index, shape), np.dtype(dtype)
  kept = [part.stop - part.start for part in index]
  out = np.empty(kept, dtype)
  if not out.size:
    return out
  # From the last axis that is cut, bytes lie together; a run is one step of all axes before it.
  cut = max((axis for axis, size in enumerate(shape) if kept[axis] != size), default=0)
  starts = np.array([offset])
  for axis, part in enumerate(index[: cut + 1]):
    places = np.arange(part.start, part.stop if axis < cut else part.start + 1)
    stride = math.prod(shape[axis + 1 :]) * dtype.itemsize
    starts = np.add.outer(starts, places * stride).ravel()
  runs = out.reshape(len(starts), -1).view(np.uint8)
  with open(file, 'rb', buffering=0) as opened:
    for run, start in zip(runs, starts.tolist(), strict=True):
      _fill(opened, run, start)
  return out


def refuse_pointer(file: str | os.PathLike, head: bytes) -> None:
  """Raises when the first bytes of a file are those of a git-lfs pointer."""
  if head.startswith(LFS):
    raise UserError(
      f"{file} is a git-lfs pointer, not the file itself; run 'git lfs pull' in "
      f'{pathlib.Path(file).parent}'
    )


def _fill(opened, run: np.ndarray, start: int) -> None:
  done = os.preadv(opened.fileno(), [run], start)
  while done < len(run):  # one call reads 2 GiB at most
    read = os.preadv(opened.fileno(), [run[done:]], start + done)
    if not read:
      raise UserError(
        f'{opened.name} ends at byte {start + done}, {start + len(run)} were expected; it changed '
        'while it was read: start again'
      )
    done += read
