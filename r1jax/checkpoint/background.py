"""One piece of work at a time in a thread of its own; its error waits for whoever asks next.

An interpreter that ends runs the work to its end first. That takes `threading`'s own exit hook:
`atexit` comes after the executors, which Orbax's event loops use, have been closed. (Python 3.12.0
and 3.12.1 refuse new threads even to that hook, gh-113964; there the error is said.)
"""

import concurrent.futures
import contextlib
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from r1jax.checkpoint.errors import expected

LOG = logging.getLogger(__name__)


class Background:
  """Runs one piece of work at a time."""

  def __init__(self):
    self._pool: concurrent.futures.ThreadPoolExecutor | None = None
    self._work: concurrent.futures.Future | None = None

  def start(self, work: Callable[[], None]) -> None:
    """Begins the work and returns; waits for earlier work and raises its error."""
    self.wait()
    if self._pool is None:
      self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
      threading._register_atexit(_end, weakref.ref(self))
    self._work = self._pool.submit(work)

  def wait(self) -> None:
    """Returns when nothing is in flight; raises the error of the work, once."""
    if self._work is not None:
      concurrent.futures.wait([self._work])
      self.poll()

  def poll(self) -> None:
    """Raises the error of work that has failed, once; never waits."""
    if self._work is not None and self._work.done():
      work, self._work = self._work, None
      work.result()

  def close(self) -> None:
    """Waits and lets the thread go; `start` makes another."""
    try:
      self.wait()
    finally:
      pool, self._pool = self._pool, None
      if pool is not None:
        pool.shutdown()

  def finish(self) -> None:
    """Closes where an exception could not be heard: another is on its way, or the program ends."""
    try:
      self.close()
    except Exception as error:
      LOG.error('%s', error)


def _end(background: weakref.ref[Background]) -> None:
  alive = background()  # a thread at work holds its Background
  if alive is not None:
    alive.finish()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps Orbax and TensorStore from telling of errors that are raised as well.

  After a failure for good: writes that were under way report late, to event loops that Orbax has
  closed, and nobody asks for their errors once the first one was raised.
  """
  absl, loops, hook = logging.getLogger('absl'), logging.getLogger('asyncio'), sys.unraisablehook

  def ours(record: logging.LogRecord) -> bool:
    return '/orbax/' not in record.pathname and 'orbax' not in record.getMessage()

  def known(record: logging.LogRecord) -> bool:
    """A future tells its error without a word of Orbax."""
    error = record.exc_info[1] if record.exc_info else None
    return ours(record) and not (error and expected(error))

  def unraisable(found: Any) -> None:
    if not (found.exc_type is RuntimeError and str(found.exc_value) == 'Event loop is closed'):
      hook(found)

  absl.addFilter(ours)
  loops.addFilter(known)
  sys.unraisablehook = unraisable
  try:
    yield
  except BaseException:
    warnings.filterwarnings('ignore', r'coroutine .async_serialize.* was never awaited')
    raise
  sys.unraisablehook = hook
  loops.removeFilter(known)
  absl.removeFilter(ours)
