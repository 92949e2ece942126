"""How a public tensor lies in one of our leaves, in einops' notation, slice by slice.

    '(N H) D -> D N H'        rows of q_proj, theirs on the left, ours on the right
    '(N C) R -> R N C'        with part=('C', 0, nope): of kv_b_proj's rows the keys' share

`read` gives a slice of ours and touches only the rows and columns of theirs that it needs; `write`
puts ours into theirs, so that several leaves can fill one tensor. Both are views and one copy.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

Index = tuple[slice, ...]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
  """`sizes`: of the letters in theirs; `part`: letter, start and stop of what ours has of it."""

  pattern: str
  sizes: tuple[tuple[str, int], ...]
  part: tuple[str, int, int] | None = None

  @property
  def theirs(self) -> tuple[int, ...]:
    """The public tensor's shape."""
    sizes = dict(self.sizes)
    return tuple(math.prod(sizes[a] for a in axis) for axis in self._axes()[0])

  @property
  def ours(self) -> tuple[int, ...]:
    """The leaf's shape, without stacking axes."""
    spans = self._spans()
    return tuple(math.prod(_length(spans[a]) for a in axis) for axis in self._axes()[1])

  def read(self, get: Callable[[Index], np.ndarray], index: Index = ()) -> np.ndarray:
    """ours[index], where get(index) reads a slice of theirs."""
    left, right = self._axes()
    sizes, spans, after = dict(self.sizes), self._spans(), []
    for axis, size, wanted in zip(right, self.ours, (*index, *[slice(None)] * len(right))):
      start, stop, _ = wanted.indices(size)
      if len(axis) == 1:
        first = spans[axis[0]][0]
        spans[axis[0]] = first + start, first + stop
        after.append(slice(None))
      else:  # joined letters are read whole and cut afterwards
        after.append(slice(start, stop))
    rows, shape, cut = [], [], []
    for axis in left:
      inner = math.prod(sizes[a] for a in axis[1:])
      start, stop = spans[axis[0]]
      rows.append(slice(start * inner, stop * inner))
      shape += [stop - start, *(sizes[a] for a in axis[1:])]
      cut += [slice(None), *(slice(*spans[a]) for a in axis[1:])]
    block = get(tuple(rows)).reshape(shape)[tuple(cut)].transpose(self._order())
    joined = [math.prod(_length(spans[a]) for a in axis) for axis in right]
    return block.reshape(joined)[tuple(after)]

  def write(self, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Puts a whole leaf (without stacking axes) where it lies in the public tensor."""
    left, right = self._axes()
    sizes, spans = dict(self.sizes), self._spans()
    letters = [a for axis in left for a in axis]
    place = theirs.reshape([sizes[a] for a in letters])[tuple(slice(*spans[a]) for a in letters)]
    split = ours.reshape([_length(spans[a]) for axis in right for a in axis])
    place[...] = split.transpose(np.argsort(self._order()))

  def _axes(self) -> tuple[list[str], list[str]]:
    """Letters of each axis, a letter being one character."""
    left, right = self.pattern.split(' -> ')
    return _groups(left), _groups(right)

  def _order(self) -> list[int]:
    left, right = self._axes()
    return [''.join(left).index(a) for a in ''.join(right)]

  def _spans(self) -> dict[str, Span]:
    """What ours has of each letter: (start, stop)."""
    spans = {a: (0, n) for a, n in self.sizes}
    return spans if self.part is None else spans | {self.part[0]: self.part[1:]}


def _groups(side: str) -> list[str]:
  """'D (N H)' -> ['D', 'NH']"""
  return [(many or one).replace(' ', '') for many, one in re.findall(r'\(([^)]*)\)|(\S)', side)]


def _length(span: Span) -> int:
  return span[1] - span[0]
