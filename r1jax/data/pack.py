"""Best-fit decreasing: rows, longest first, each into the fullest line that still holds it.

At most 11/9 of the best number of lines, plus 1 (Johnson 1974); on text, whose many short documents
fill what the long ones leave, almost none is lost: only whole rows move, and a line of `length`
inputs wastes what no row fits. Cost: O(n log n) comparisons.
"""

import bisect
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
  """Lines of row numbers, whose lengths add up to `length` at most a line."""
  lines: list[list[int]] = []
  spaces: list[tuple[int, int]] = []  # (free inputs, line), ascending
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    if lengths[i] > length:
      raise ValueError(f'row {i} has {lengths[i]} inputs, a line holds {length}; cut it first')
    at = bisect.bisect_left(spaces, (lengths[i], 0))
    if at == len(spaces):
      free, line = length, len(lines)
      lines.append([])
    else:
      free, line = spaces.pop(at)
    lines[line].append(i)
    bisect.insort(spaces, (free - lengths[i], line))
  return lines
