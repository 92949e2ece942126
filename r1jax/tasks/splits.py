"""Disjoint splits of an endless stream of candidates, decided by a hash of each question's text.

bucket = blake2b(question) mod 8: 0 → eval, 1 → sft, 2…7 → rl. No list of questions is kept or
compared: no question can be in two splits, even between runs with other seeds. Within eval and sft
repeats are dropped. blake2b, not `hash`: Python salts the latter by process.

Cost: one candidate is made for each index scanned, about 8 for an example of eval or sft, 4/3 for
rl.
"""

import hashlib
from collections.abc import Callable

from r1jax.core.errors import UserError
from r1jax.tasks.task import SPLITS, Split

_BUCKETS = 8
# A split of distinct questions ends when so many candidates in a row brought it nothing new: with
# 1/8 of the candidates its own, less than about 2 % of its questions are then still unseen.
_PATIENCE = 2_000


def digest(text: str) -> int:
  """64 bits that depend on the text alone."""
  return int.from_bytes(
    hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).digest(), 'little'
  )


def split_of(question: str) -> Split:
  """The split a question belongs to."""
  bucket = digest(question) % _BUCKETS
  return 'eval' if bucket == 0 else 'sft' if bucket == 1 else 'rl'


class Splits:
  """Indices of the stream by split, found lazily. `question(i)` gives the text of candidate i.

  `size=None`: the stream has no end and rl follows it. With a size, rl starts again after the last
  candidate.
  """

  def __init__(self, question: Callable[[int], str], size: int | None = None):
    self._question, self._size = question, size
    self._found: dict[Split, list[int]] = {split: [] for split in SPLITS}
    self._seen: set[int] = set()
    self._latest: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    self._closed: set[Split] = set()
    self._next = 0

  def indices(self, split: Split, start: int, count: int) -> list[int]:
    """Candidates start … start+count−1 of a split, fewer where sft or eval ends."""
    if split not in SPLITS:
      raise UserError(f'split {split!r} is unknown; expected one of {", ".join(SPLITS)}')
    if start < 0 or count < 0:
      raise UserError(f'start={start} and count={count} must not be negative')
    found = self._found[split]
    while len(found) < start + count and not self._ended(split):
      self._scan()
    if split == 'rl' and len(found) < start + count:
      return [found[i % len(found)] for i in range(start, start + count)] if found else []
    return found[start : start + count]

  def _ended(self, split: Split) -> bool:
    return split in self._closed or self._next == self._size

  def _scan(self) -> None:
    """Looks at one candidate; its fate depends on earlier candidates, not on who asks."""
    i, self._next = self._next, self._next + 1
    question = self._question(i)
    split = split_of(question)
    if split == 'rl':
      self._found['rl'].append(i)
    elif split not in self._closed and (key := digest(question)) not in self._seen:
      self._seen.add(key)
      self._found[split].append(i)
      self._latest[split] = i
    if self._size is None:
      self._closed |= {s for s in ('sft', 'eval') if i - self._latest[s] >= _PATIENCE}
