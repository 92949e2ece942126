"""Who holds which page of the cache, and which pages hold a prefix that others may read.

A page is the place of `size` consecutive positions of one sequence, in all layers at once. It is
free, referenced by one sequence or more, or cached: published, referenced by none, and there to be
found until its place is needed (the least recently used first).

A published page is a node of a tree of prefixes: its key is (the node before it, its tokens), told
apart by equality, so that no two prefixes are ever taken for one. Only whole pages are published,
and nobody writes them again: sharing needs no copies. (vLLM's automatic prefix caching, arXiv
2309.06180, with its hashes of hashes replaced by numbers of nodes.)

Cost: `match` and `publish` read each token once; the rest is O(pages it is about). Plain Python.
"""

import collections
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = 0  # the node before every first page

Key = tuple[int, tuple[int, ...]]


class _Entry(NamedTuple):
  """A published page: its key, and its number as the node before others."""

  key: Key
  node: int


class Pages:
  """Free list, reference counts and index of prefixes over `count` pages of `size` positions."""

  def __init__(self, count: int, size: int):
    if count < 1 or size < 1:
      raise ValueError(f'{count} pages of {size} positions; expected 1 or more of each')
    self.count, self.size = count, size
    self._free = list(reversed(range(count)))
    self._references = [0] * count
    self._entries: dict[int, _Entry] = {}
    self._index: dict[Key, int] = {}
    self._cached: dict[int, None] = {}  # an ordered set: the next to be evicted comes first
    # Numbers of nodes are never used again, so that a page whose parent was evicted cannot be found
    # behind another parent: it stays out of reach until it is evicted itself.
    self._nodes = itertools.count(ROOT + 1)

  @property
  def free(self) -> int:
    """Pages that hold nothing."""
    return len(self._free)

  @property
  def cached(self) -> int:
    """Pages that hold a prefix and are referenced by none."""
    return len(self._cached)

  @property
  def used(self) -> int:
    """Pages that are referenced, each counted once."""
    return self.count - self.free - self.cached

  @property
  def available(self) -> int:
    """Pages that `allocate` can give: the free and the cached ones."""
    return self.free + self.cached

  def allocate(self, n: int) -> list[int] | None:
    """n pages, referenced once each and private; None, and nothing changes, if there are fewer."""
    if n > self.available:
      return None
    while self.free < n:
      self._evict()
    pages = [self._free.pop() for _ in range(n)]
    for page in pages:
      self._references[page] = 1
    return pages

  def release(self, pages: Sequence[int]) -> None:
    """Takes one reference from each; without any left a page is cached if published, else free.

    From the last to the first, so that a prefix is evicted from its end.
    """
    for page in reversed(pages):
      if not self._references[page]:
        raise ValueError(f'page {page} is released once more than it was given out')
      self._references[page] -= 1
      if not self._references[page]:
        if page in self._entries:
          self._cached[page] = None
        else:
          self._free.append(page)

  def match(self, tokens: Sequence[int]) -> list[int]:
    """The published pages of the longest prefix of `tokens`, each with one reference more.

    Never all tokens: the last one has to be computed, for its logits.
    """
    pages, node = [], ROOT
    for end in range(self.size, len(tokens), self.size):
      page = self._index.get((node, tuple(tokens[end - self.size : end])))
      if page is None:
        break
      pages.append(page)
      node = self._entries[page].node
    for page in pages:
      self._references[page] += 1
      self._cached.pop(page, None)
    return pages

  def publish(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
    """Lets others find the pages that `tokens` fill, each behind those before it.

    Where another page has the same prefix already, it is kept, and this one stays private.
    """
    node = ROOT
    for i, page in enumerate(pages[: len(tokens) // self.size]):
      if page not in self._entries:
        key = node, tuple(tokens[i * self.size : (i + 1) * self.size])
        first = self._index.setdefault(key, page)
        if first == page:
          self._entries[page] = _Entry(key, next(self._nodes))
        page = first
      node = self._entries[page].node

  def clear(self) -> None:
    """Forgets all prefixes: what was computed with other weights must not be found."""
    self._free.extend(self._cached)
    self._cached.clear()
    self._entries.clear()
    self._index.clear()

  def check(self, owners: Iterable[Sequence[int]]) -> None:
    """Raises AssertionError unless the accounts agree, and with what the owners hold."""
    held = collections.Counter()
    for pages in owners:
      assert len(set(pages)) == len(pages), f'one owner holds a page twice: {list(pages)}'
      held.update(pages)
    referenced = {page for page in range(self.count) if self._references[page]}
    wrong = {p for p in range(self.count) if self._references[p] != held[p]}
    assert not wrong, f'pages {wrong}: counts {self._references}, owners hold {dict(held)}'
    places = sorted([*self._free, *self._cached, *referenced])
    assert places == list(range(self.count)), f'not in exactly one place each: {places}'
    index = {entry.key: page for page, entry in self._entries.items()}
    assert index == self._index, 'the index differs from what is published'
    assert self._entries.keys() >= self._cached.keys(), 'a cached page is not published'
    assert self._entries.keys().isdisjoint(self._free), 'a free page is published'

  def _evict(self) -> None:
    page = next(iter(self._cached))
    del self._cached[page]
    del self._index[self._entries.pop(page).key]
    self._free.append(page)
