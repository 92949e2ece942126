"""Rollouts written ahead: older weights write the next step's samples while a step is trained.

    main thread   rollout 0 | train 0 by W0 → W1 | train 1 by W1 → W2 | train 2 …
    its thread                rollout 1 by W0      rollout 2 by W1

So with `RL.staleness=1` every step but the first trains on samples of weights that are exactly one
step (its `minibatches` updates) old: the run is a function of its seed, whichever thread is faster.
One step off policy costs little (Noukhovitch et al., arXiv 2410.18252) while less waits.

Training donates its state, so the writer has a copy of the policy, made before the first update and
dropped when its samples are taken: one policy more in memory (of LoRA the adapters alone) and in
checkpoints, which hold these weights rather than what they have written so far. A resumed run
writes the rollout anew, with the same bits.

Programs of both threads take turns on a device, each as a whole: what passes at the same time is
the host's work (grading, the scheduler, transfers); `rollout_hidden` tells the share of a rollout's
time that nothing waited for. The caches of a rollout lie beside training's memory.
On a mesh two threads would launch their collectives in different orders on different devices, which
may hang: there the main thread writes ahead, before the updates. Same samples, nothing hidden.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from r1jax.train import rollouts, weights
from r1jax.train.keeper import Keeper
from r1jax.train.point import Point, Version
from r1jax.train.rl import RL, Rollout
from r1jax.train.run import Run
from r1jax.train.stop import Stopped


def threaded(run: Run) -> bool:
  """Whether a second thread may launch programs."""
  return run.mesh is None


class Ahead:
  """At most one rollout under way. A context manager: no thread outlives it."""

  def __init__(self, run: Run, stage: RL, keeper: Keeper):
    self._run, self._stage, self._keeper = run, stage, keeper
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'rollout')  # starts when first used
    self._take: Callable[[], Rollout] | None = None
    self._over = threading.Event()

  def begin(self, here: Point) -> Point:
    """Has the next step's rollout written by the weights of `here`, which tells them from now on.

    here: before the first update; later (a resumed run) it has the older weights already.
    """
    stage, state = self._stage, here.state
    if not stage.staleness or here.step + 1 == stage.steps:
      return here
    if here.older is None:
      older = Version(int(state.step), weights.copied(self._run.exp, state.params))
      here = dataclasses.replace(here, older=older)
    params = weights.whole(self._run.exp, here.older.params, state.params)
    if threaded(self._run):
      write = functools.partial(self._write, params, here.step + 1, here.asked)
      self._take = functools.partial(self._wait, self._thread.submit(write))
    else:
      with self._keeper.resting(here):
        done = rollouts.rollout(self._run, stage, params, here.step + 1, here.asked)
      self._take = lambda: done
    return here

  def take(self) -> Rollout | None:
    """The rollout that was begun, waited for, or what went wrong with it; None if there is none."""
    take, self._take = self._take, None
    return take and take()

  def _write(self, params: Any, step: int, asked: int) -> tuple[Rollout, float]:
    """The rollout and its seconds; runs in the thread, whose timers are its own."""
    done = rollouts.rollout(self._run, self._stage, params, step, asked, self._check)
    return done, sum(self._run.timers.take().values())

  def _check(self) -> None:
    if self._over.is_set():
      raise concurrent.futures.CancelledError

  def _wait(self, future: concurrent.futures.Future) -> Rollout:
    begin = time.monotonic()
    with self._run.timers('rollout'):
      done, took = future.result()
    hidden = max(1 - (time.monotonic() - begin) / max(took, 1e-9), 0.0)
    return done._replace(figures=done.figures | {'rollout_hidden': hidden})

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
    """Waits for the wave under way; a stopped run, saved by now, not beyond its deadline."""
    self._over.set()
    stopped = isinstance(error, Stopped)
    resting = self._run.stop.resting(lambda: str(error)) if stopped else contextlib.nullcontext()
    with resting:
      self._thread.shutdown(cancel_futures=True)
