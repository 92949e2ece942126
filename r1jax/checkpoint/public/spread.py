"""Work on many chunks in a few threads, with its progress."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from r1jax.checkpoint.public.chunks import Chunk


class Progress(NamedTuple):
  """Bytes that are 'written' or 'verified', of all that this process has to do."""

  what: str
  done: int
  total: int


Say = Callable[[Progress], None]
Work = Callable[[int, Iterator[Chunk]], None]


class Feed:
  """Chunks for several threads, until it is stopped."""

  def __init__(self, items: Iterable[Chunk]):
    self._items, self._lock, self._stopped = iter(items), threading.Lock(), False

  def __iter__(self) -> Iterator[Chunk]:
    return self

  def __next__(self) -> Chunk:
    with self._lock:
      if self._stopped:
        raise StopIteration
      return next(self._items)

  def stop(self) -> None:
    """Lets the threads end after what they have begun."""
    self._stopped = True


class Teller:
  """Adds up what the threads have done; speaks at once of what was done before."""

  def __init__(self, say: Say | None, what: str, before: int, chunks: Iterable[Chunk]):
    self._say, self._lock = say, threading.Lock()
    self._now = Progress(what, before, before + sum(chunk.nbytes for chunk in chunks))
    self._tell()

  def add(self, chunk: Chunk) -> None:
    """A chunk is done."""
    with self._lock:
      self._now = self._now._replace(done=self._now.done + chunk.nbytes)
      self._tell()

  def _tell(self) -> None:
    if self._say is not None:
      self._say(self._now)


def spread(items: Iterable[Chunk], workers: int, work: Work) -> None:
  """work(thread, chunks) in each thread; raises the first error once all have ended."""
  feed = Feed(items)
  with ThreadPoolExecutor(workers, thread_name_prefix='convert') as pool:
    running = [pool.submit(work, thread, feed) for thread in range(workers)]
    try:
      for ended in as_completed(running):
        ended.result()
    finally:
      feed.stop()
