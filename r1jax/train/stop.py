"""Stopping without loss: SIGTERM and Ctrl-C ask for a checkpoint at the next safe point.

A safe point lies between two updates and, in RL, between a graded rollout and its updates. A
rollout or an evaluation may take longer than the machine's grace: through both the state lies
still, and when `deadline` seconds have passed it is saved as it was at their start, from a thread.

Python runs a signal's handler only when the main thread comes back from C; the wake-up descriptor
is written at once. Several processes agree on the safe point through jax.distributed, which hears
SIGTERM itself; there nothing is saved from a thread, and Ctrl-C ends the run at its newest
checkpoint.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Self

from r1jax.core.errors import UserError
from r1jax.sharding import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - a request heeded, no error
  """The run was asked to stop and is saved; `code` is the exit status."""

  def __init__(self, text: str, number: int):
    super().__init__(text)
    self.code = 128 + number


class Stop:
  """Hears the signals while it is open. `say` prints a line."""

  def __init__(self, deadline: float, say: Callable[[str], None]):
    self.number: int | None = None  # of the signal that came
    self._deadline, self._say = deadline, say
    self._points = 0
    self._lock = threading.Lock()
    self._resting: Callable[[], str] | None = None
    self._over = threading.Event()

  def now(self) -> bool:
    """Whether to stop here; every process asks at the same safe points."""
    self._points += 1
    if processes.count() > 1 and processes.stopping(self._points):
      self.number = int(signal.SIGTERM)
    return self.number is not None

  @contextlib.contextmanager
  def resting(self, save: Callable[[], str]) -> Iterator[None]:
    """Inside, nothing is donated: `save` may be called from another thread; it says what it did."""
    with self._lock:
      self._resting = save
    try:
      yield
    finally:
      with self._lock:  # waits for a save that has begun; the process ends with it
        self._resting = None

  def __enter__(self) -> Self:
    if processes.count() > 1 or threading.current_thread() is not threading.main_thread():
      self._restore = lambda: None
      return self
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fd = signal.set_wakeup_fd(writer)
    handlers = {s: signal.signal(s, self._handle) for s in SIGNALS}

    def restore() -> None:
      signal.set_wakeup_fd(fd)
      for s, handler in handlers.items():
        signal.signal(s, handler)
      os.close(writer)

    self._restore = restore
    threading.Thread(target=self._watch, args=(reader,), daemon=True, name='stop').start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()
    self._restore()

  def _handle(self, number: int, _: object) -> None:
    """Runs in the main thread: the second Ctrl-C does not wait."""
    if self.number is None:
      self.number = number
    elif number == signal.SIGINT:
      raise KeyboardInterrupt

  def _watch(self, reader: int) -> None:
    """Runs in a thread of its own until the writing end is closed."""
    with open(reader, 'rb', buffering=0) as pipe:
      while data := pipe.read(1):
        if data[0] in SIGNALS:
          self._rescue(data[0])

  def _rescue(self, number: int) -> None:
    """Says that the run will stop; past the deadline saves what lies still and ends the process."""
    name = signal.Signals(number).name
    self._say(f'{name}: saving at the next safe point')
    if self._over.wait(self._deadline):
      return
    with self._lock:
      if self._resting is None:
        self._say(f'{name}: still on the way to a safe point after {self._deadline:g} s')
        return
      try:
        self._say(self._resting())
      except UserError as error:
        self._say(str(error))
        return
      os._exit(128 + number)
