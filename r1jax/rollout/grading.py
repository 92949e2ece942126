"""Grading in the background: what is written is verified while more is being written.

    answer = grading.start(calls)     returns at once
    …                                 generation goes on
    grades = answer()                 waits for what is left

One thread waits for the pool of verifier processes, which run whatever it does; generation leaves
Python to XLA meanwhile. Among several processes each grades its part of the calls and all know all
grades: they exchange them in `answer`, on the main thread, which alone may communicate.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Self

from r1jax.rewards.outcome import Grade, Outcome
from r1jax.sharding import processes
from r1jax.tasks.task import Example

Calls = Sequence[tuple[Example, str]]
Grader = Callable[[Calls], list[Grade]]


class Grading:
  """A grader that may be asked ahead; for one thread. A context manager that ends what is open."""

  def __init__(self, grade: Grader, close: Callable[[], None] = lambda: None):
    self._grade, self._close = grade, close
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'grading')

  def __call__(self, calls: Calls) -> list[Grade]:
    """The grades, in the order of the calls."""
    part = _mine(calls)
    return _told(lambda: self._grade(part), len(calls))

  def start(self, calls: Calls) -> Callable[[], list[Grade]]:
    """Begins; the returned function waits for the grades. Ask in the order of starting."""
    future = self._thread.submit(self._grade, _mine(calls))
    return lambda: _told(future.result, len(calls))

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._close()  # first: the thread may be waiting for a verifier
    self._thread.shutdown(cancel_futures=True)


def _mine(calls: Calls) -> Calls:
  """The calls that this process grades."""
  return list(calls)[processes.index() :: processes.count()]


def _told(grade: Callable[[], list[Grade]], count: int) -> list[Grade]:
  """The grades of all processes from those of this one."""
  mine = processes.together(grade)
  if processes.count() == 1:
    return mine
  told = processes.exchange([(g.outcome.value, g.reward, g.parts, g.open) for g in mine])
  grades: list[Grade | None] = [None] * count
  for i, part in enumerate(told):
    grades[i :: len(told)] = [Grade(Outcome(o), *rest) for o, *rest in part]
  return grades
