"""What happens between steps: telemetry, the progress line, checkpoints, stopping."""

from contextlib import AbstractContextManager

import jax

from r1jax.sharding import processes
from r1jax.train import perf
from r1jax.train.point import Point
from r1jax.train.run import Run
from r1jax.train.stop import Stopped

SHOWN = ('loss', 'reward', 'length', 'mfu')
IDLE = ('time/compile', 'time/checkpoint', 'time/evaluate')  # not the step's own time


class Keeper:
  """Told of every step of one stage of `steps`."""

  def __init__(self, run: Run, steps: int):
    self._run, self._steps = run, steps
    self._row: dict[str, float] = {}  # the newest

  def done(self, point: Point, figures: dict[str, float]) -> None:
    """Behind a step: writes its figures, saves when it is time, stops when asked to.

    figures: beside what is written, 'tokens' and 'flops' (the model's) that the step worked on.
    """
    run, every = self._run, self._run.exp.checkpoint.every
    self._tell(point.step, dict(figures))
    run.profiler.after(point.step)
    if point.step < self._steps:
      run.profiler.before(point.step + 1)
    else:
      run.profiler.cut()
    if run.stop.now():
      self._save_and_stop(point)
    if point.step % every == 0 or point.step == self._steps:
      run.save(point)
    if processes.count() == 1:  # several hear of a failed save together: at the next one
      run.store.poll()

  def pause(self, point: Point) -> None:
    """Between the updates of one rollout: stops here when asked to, and keeps the rollout."""
    if self._run.stop.now():
      self._save_and_stop(point)

  def resting(self, point: Point) -> AbstractContextManager:
    """While a rollout or an evaluation reads the state, it may be saved at any moment."""
    return self._run.stop.resting(lambda: self._save(point))

  def close(self, point: Point) -> None:
    """Behind the evaluation: its times join the last step's row."""
    spent = self._run.timers.take()
    if spent:
      row = {name: seconds + self._row.get(name, 0.0) for name, seconds in spent.items()}
      self._run.writer.write(point.step, self._run.progress.stage, row)

  def _tell(self, step: int, figures: dict[str, float]) -> None:
    """One row of telemetry and the progress line."""
    run, spent = self._run, self._run.timers.take()
    tokens, work = figures.pop('tokens', None), figures.pop('flops', None)
    busy = max(sum(s for name, s in spent.items() if name not in IDLE), 1e-9)
    figures['data_wait'] = spent.get('time/data', 0.0) / busy
    if tokens is not None:
      figures['tokens_per_s'] = tokens / busy
    if work is not None and (used := perf.mfu(work / busy, jax.devices())) is not None:
      figures['mfu'] = used
    self._row = spent
    run.writer.write(step, run.progress.stage, figures | spent | perf.memory())
    told = {name: figures[name] for name in ('tokens_per_s', *SHOWN) if name in figures}
    run.progress.update(step, **told)

  def _save(self, point: Point) -> str:
    """Saves and waits; says what to do next."""
    run, name = self._run, self._run.exp.stages[point.stage].name
    new = run.save(point, block=True)
    kept = ', its rollout kept' if point.pending and new else ''
    return (
      f'stopped at {name} step {point.step} of {self._steps}{kept}; checkpoint in {run.workdir}; '
      'the same command goes on from there'
    )

  def _save_and_stop(self, point: Point) -> None:
    text = self._save(point)
    raise Stopped(text, self._run.stop.number)
