"""The process that grades: `python -m r1jax.rewards.worker FD SECONDS BYTES`, started by
`pool.Pool`.

Over the socket FD come a builder, pickled, then chunks of (example, text); out go `None` once the
task is built, or the text of what went wrong, then one Grade for each item, in order. A mistake in
the task itself (a UserError, what is no Grade, a reward that is no number) goes out as a UserError
in place of the Grade: a run must not learn from it. It imports what the task imports, no jax, and
never the main module of its parent.
"""

import logging
import math
import multiprocessing.connection
import os
import resource
import signal
import sys
import traceback
from typing import Any

from r1jax.core.errors import UserError
from r1jax.rewards.outcome import Grade, Outcome

# Killed by the kernel after so many limits, in case the parent is gone and cannot do it.
_ORPHAN = 3


def main(descriptor: int, seconds: float, memory: int) -> None:
  """Serves until the parent closes the socket."""
  if sys.platform == 'linux':
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  parent = multiprocessing.connection.Connection(descriptor)
  try:
    task = _build(parent)
    while task is not None:
      for example, text in parent.recv():
        signal.setitimer(signal.ITIMER_REAL, _ORPHAN * seconds)
        grade = _grade(task, example, text)
        signal.setitimer(signal.ITIMER_REAL, 0)
        parent.send(grade)
  except (EOFError, ConnectionError):
    pass  # the parent closed the pool or is gone
  logging.shutdown()
  os._exit(0)  # threads that a grader left behind must not keep the process


def _build(parent: multiprocessing.connection.Connection) -> Any:
  try:
    task = parent.recv()()
  except EOFError:
    raise
  except BaseException:  # SystemExit in a user's file too; the parent raises it with this text
    parent.send(traceback.format_exc())
    return None
  parent.send(None)
  return task


def _grade(task: Any, example: Any, text: str) -> Grade | UserError:
  try:
    grade = task.grade(example, text)
    if not isinstance(grade, Grade):
      raise UserError(f'grade() gave {grade!r:.200}; expected a Grade')
    if not math.isfinite(grade.reward):
      raise UserError(f'grade() gave the reward {grade.reward}; expected a finite number')
    return grade
  except UserError as e:
    return UserError(' '.join(f'{e} (while grading {example!r:.60}…)'.split()))
  except BaseException:  # whatever a grader does, the next item is graded
    logging.exception('grader failed on %.200r', example)
    return Grade(Outcome.UNPARSEABLE, 0.0, {'crash': 1.0})


if __name__ == '__main__':
  main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
