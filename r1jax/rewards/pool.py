"""Grades in processes of their own: a verifier that hangs or dies costs its time limit, nothing
else.

Each worker is a fresh interpreter (`worker.py`): no fork of a process that holds jax, no thread
beside it. Not `multiprocessing`'s spawn either, which runs the parent's main module again in every
child; the binaries' imports jax. A worker takes chunks and answers item by item, so that the item
at fault is known:

    over the limit            → TIMEOUT, reward 0, parts {'timeout': 1}
    process died, or raised   → UNPARSEABLE, reward 0, parts {'crash': 1}
    raised a UserError        → raised by `map`: the task is at fault, not this text

and after a hang or a death it is killed, reaped and replaced, and the rest of its chunk goes to
another.

Cost: 0.1 ms an item beside the grading; a start takes the task's imports (seconds) in the
background.
"""

import collections
import contextlib
import logging
import multiprocessing.connection
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Grade, Outcome

_START_SECONDS = 120.0
_MAX_CHUNK = 32
_Call = tuple[int, Any, str]  # position in the batch, example, text


class Grader(Protocol):
  """What a worker builds: any task."""

  def grade(self, example: Any, completion: str) -> Grade:
    """Outcome and reward of a text."""
    ...


class Pool:
  """Workers that each build a grader once and then grade. A context manager; for one thread at a
  time, but `close` ends a `map` of another one.

  `build` is pickled, so it and what it refers to are importable: `partial(tasks.make.make, spec)`.
  `seconds` is wall time for one item; `memory` bounds a worker's address space in bytes (Linux).
  """

  def __init__(
    self,
    build: Callable[[], Grader],
    workers: int = 2,
    seconds: float = 5.0,
    memory: int = 4 << 30,
  ):
    if workers < 1 or seconds <= 0:
      raise UserError(f'workers={workers}, seconds={seconds}; expected at least 1 and more than 0')
    try:
      self._build = pickle.dumps(build)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
      raise UserError(
        f'cannot send {build!r} to a worker ({e}); expected a function of an importable module or '
        'functools.partial of one, such as partial(make, spec)'
      ) from e
    self._seconds, self._memory, self._open = seconds, memory, True
    self._workers = [self._start() for _ in range(workers)]

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends every worker; the pool is of no more use."""
    self._open = False
    for worker in list(self._workers):
      worker.kill()
    self._workers = []

  def map(self, calls: Sequence[tuple[Any, str]]) -> list[Grade]:
    """Grades of (example, text) pairs, in their order; a UserError only where the task is wrong."""
    if not self._open:
      raise RuntimeError('the pool is closed')
    todo = collections.deque((i, example, text) for i, (example, text) in enumerate(calls))
    size = max(1, min(_MAX_CHUNK, len(todo) // (4 * len(self._workers))))
    grades: list[Grade | None] = [None] * len(todo)
    left = len(todo)
    try:
      while left:
        self._feed(todo, size)
        for i, grade in self._collect(todo):
          grades[i] = grade
          left -= 1
    except BaseException:
      self._abandon()
      raise
    return grades

  def _start(self) -> '_Worker':
    if not self._open:
      raise RuntimeError('the pool is closed')
    return _Worker(self._build, self._seconds, self._memory)

  def _replace(self, worker: '_Worker') -> None:
    worker.kill()
    self._workers[self._workers.index(worker)] = self._start()

  def _abandon(self) -> None:
    """After an interrupt: no later batch may receive the grades of this one."""
    for worker in [w for w in self._workers if w.chunk]:
      self._replace(worker)

  def _feed(self, todo: collections.deque[_Call], size: int) -> None:
    """Gives each ready and idle worker a chunk."""
    for worker in list(self._workers):
      if todo and worker.ready and not worker.chunk:
        chunk = [todo.popleft() for _ in range(min(size, len(todo)))]
        if not worker.send(chunk):  # it died while idle: nobody's fault
          todo.extendleft(reversed(chunk))
          self._replace(worker)

  def _collect(self, todo: collections.deque[_Call]) -> list[tuple[int, Grade]]:
    """Waits for one message or deadline; the (position, grade) pairs that came of it."""
    busy = {w.socket: w for w in self._workers if w.chunk or not w.ready}
    patience = max(0.0, min(w.deadline for w in busy.values()) - time.monotonic())
    heard = [busy[s] for s in multiprocessing.connection.wait(list(busy), patience)]
    done = []
    for worker in heard:
      done += self._hear(worker, todo)
    # Silence counts only if there was nothing to read: the parent may itself have been stalled.
    for worker in busy.values():
      if worker not in heard and time.monotonic() >= worker.deadline:
        done += self._fail(worker, todo, Outcome.TIMEOUT, 'timeout')
    return done

  def _hear(self, worker: '_Worker', todo: collections.deque[_Call]) -> list[tuple[int, Grade]]:
    """Everything one worker has sent."""
    done = []
    try:
      while worker.socket.poll():
        message = worker.socket.recv()
        if not worker.ready:
          worker.begin(message)
        elif isinstance(message, UserError):
          raise message
        else:
          done.append((worker.chunk.popleft()[0], message))
          worker.deadline = time.monotonic() + self._seconds
    except (EOFError, ConnectionError, pickle.UnpicklingError):
      done += self._fail(worker, todo, Outcome.UNPARSEABLE, 'crash')
    return done

  def _fail(
    self, worker: '_Worker', todo: collections.deque[_Call], outcome: Outcome, part: str
  ) -> list[tuple[int, Grade]]:
    """Replaces a worker that hangs or is dead; blames the item it was at."""
    if not worker.ready:
      raise UserError(f'a grading worker did not start ({part} after {worker.age():.0f} s)')
    if not worker.chunk:
      self._replace(worker)
      return []
    i, example, _ = worker.chunk.popleft()
    todo.extendleft(reversed(worker.chunk))
    self._replace(worker)
    logging.warning('grading ended in %s on %.200r', part, example)
    return [(i, Grade(outcome, 0.0, {part: 1.0}))]


class _Worker:
  """One process, its socket, the chunk it is at and the time by which it must speak."""

  def __init__(self, build: bytes, seconds: float, memory: int):
    ours, theirs = socket.socketpair()
    # One thread each: the parent has the cores, and OpenBLAS reserves memory by thread.
    env = os.environ | {
      'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path),
      'OPENBLAS_NUM_THREADS': '1',
      'OMP_NUM_THREADS': '1',
    }
    command = [sys.executable, '-m', 'r1jax.rewards.worker', str(theirs.fileno())]
    self.process = subprocess.Popen(
      [*command, str(seconds), str(memory)],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      env=env,
      process_group=0,  # so that what a grader starts can be killed with it
    )
    theirs.close()
    self.socket = multiprocessing.connection.Connection(ours.detach())
    self.socket.send_bytes(build)
    self.ready, self.chunk, self._seconds = False, collections.deque(), seconds
    self._started = time.monotonic()
    self.deadline = self._started + _START_SECONDS

  def age(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._started

  def begin(self, error: str | None) -> None:
    """Takes the first message: None, or why there is no grader."""
    if error is not None:
      raise UserError(f'a grading worker could not build its task:\n{error}')
    self.ready = True

  def send(self, chunk: list[_Call]) -> bool:
    """Hands over a chunk; False if the process is gone."""
    try:
      self.socket.send([(example, text) for _, example, text in chunk])
    except ConnectionError:
      return False
    self.chunk = collections.deque(chunk)
    self.deadline = time.monotonic() + self._seconds
    return True

  def kill(self) -> None:
    """Ends the process, whatever it started, and reaps it."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    self.socket.close()
