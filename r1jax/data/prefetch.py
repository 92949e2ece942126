"""Reads ahead in a thread, so that the next batch is ready when a step ends.

At most `depth` items are made and not yet taken. The thread is a daemon: one that hangs in a read
does not keep the interpreter alive.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')
_JOIN_S = 1.0  # a read that takes longer is left to end by itself


class Prefetch(Iterator[T]):
  """Items of an iterable, in order; its exception is raised where its next item would come."""

  def __init__(self, items: Iterable[T], depth: int = 2):
    if depth < 1:
      raise ValueError(f'depth={depth}; expected 1 or more')
    self._free = threading.Semaphore(depth)
    self._ready: queue.SimpleQueue = queue.SimpleQueue()  # (item, None) …, (None, exception)
    self._end: BaseException | None = None
    self._closed = False
    self._thread = threading.Thread(target=self._run, args=(items,), name='prefetch', daemon=True)
    self._thread.start()

  def __next__(self) -> T:
    if self._closed:
      raise ValueError('next() of a closed Prefetch')
    if self._end is None:
      item, self._end = self._ready.get()
    if self._end is not None:
      raise self._end
    self._free.release()
    return item

  def __enter__(self) -> 'Prefetch[T]':
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the thread, after the item that it is making; what was read ahead is dropped."""
    self._closed = True
    self._free.release()
    self._thread.join(_JOIN_S)

  def _run(self, items: Iterable[T]) -> None:
    try:
      iterator = iter(items)
      while self._free.acquire() and not self._closed:
        self._ready.put((next(iterator), None))
    except BaseException as error:
      self._ready.put((None, error))
