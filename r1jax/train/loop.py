"""A whole run: initialize or resume, run the stages, evaluate after each, report.

A checkpoint holds the state with its stage, the step within it and the evaluations so far; starting
the same command again in the same workdir goes on from the newest one.
"""

import dataclasses
import pathlib
from typing import Any

import jax

from r1jax.checkpoint.store import Store, resolve
from r1jax.eval import report
from r1jax.optim import optimizer as optim
from r1jax.sharding import place
from r1jax.train import provenance, telemetry
from r1jax.train import state as states
from r1jax.train.experiment import Experiment
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.run import Run, inputs, open_run
from r1jax.train.stages import run_rl, run_sft
from r1jax.train.state import State
from r1jax.train.supervised import SFT

SHOWN = ('loss', 'reward', 'length')


@dataclasses.dataclass(frozen=True)
class Point:
  """Where a run is: stage, how many of its steps are done, figures so far; no state: its end."""

  stage: int
  step: int
  state: State | None
  evaluations: list[dict[str, Any]]


def train(exp: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs an experiment to its end and returns the summary that it writes."""
  with open_run(exp, workdir) as run:
    point = begin(run) if run.store.latest() is None else resume(run)
    while point.state is not None:
      point = run_stage(run, point)
    return finish(run, point.evaluations)


def begin(run: Run) -> Point:
  """The first stage, from fresh parameters or those of another checkpoint."""
  if run.exp.init is None:
    return enter(run, 0, states.init_params(run.model, run.exp.seed, run.mesh, inputs(run.exp)), [])
  directory, step = resolve(run.exp.init)
  boxed = place.abstract(run.model, inputs(run.exp))
  wanted = {'params': place.templates(run.mesh, boxed)}
  return enter(run, 0, Store(directory).restore(wanted, step, partial=True)['params'], [])


def enter(run: Run, stage: int, params: Any, evaluations: list[dict[str, Any]]) -> Point:
  """The start of a stage: its own optimizer around the parameters so far."""
  if stage == len(run.exp.stages):
    return Point(stage, 0, None, evaluations)
  optimizer = optim.make(run.exp.stages[stage].optimizer, params)
  state = states.fresh(params, optimizer, run.mesh, run.exp.first_step(stage))
  return Point(stage, 0, state, evaluations)


def run_stage(run: Run, point: Point) -> Point:
  """The rest of one stage, its evaluation and its checkpoint."""
  number, every = point.stage, run.exp.checkpoint.every
  stage = run.exp.stages[number]
  with Progress(stage.name, stage.steps, start=point.step) as progress:
    run.progress = progress

    def after(state: State, step: int, figures: dict[str, float]) -> None:
      spent = run.timers.take()
      tokens = figures.pop('tokens')
      busy = sum(
        s
        for name, s in spent.items()
        if name not in ('time/compile', 'time/checkpoint', 'time/evaluate')
      )
      figures = figures | spent | {'tokens_per_s': tokens / max(busy, 1e-9)}
      run.writer.write(step, stage.name, figures)
      told = {name: figures[name] for name in ('tokens_per_s', *SHOWN) if name in figures}
      progress.update(step, **told)
      if step % every == 0 and step < stage.steps:
        run.save(state, number, step, point.evaluations)

    go = run_sft if isinstance(stage, SFT) else run_rl
    state = go(run, stage, point.state, point.step, after)
    figures = run.evaluate(state.params, f'after {stage.name.upper()}', stage.steps)
    evaluations = [*point.evaluations, figures | {'stage': stage.name}]
    run.save(state, number + 1, 0, evaluations)
    run.writer.write(stage.steps, stage.name, run.timers.take())
  return enter(run, number + 1, state.params, evaluations)


def template(run: Run, stage: SFT | RL, reference: bool) -> State:
  """Shapes and places of a stage's state, without memory."""
  boxed = place.abstract(run.model, inputs(run.exp))
  params = place.templates(run.mesh, boxed)
  opt = place.like_templates(
    run.mesh, params, jax.eval_shape(optim.make(stage.optimizer, params).init, params)
  )
  step = jax.ShapeDtypeStruct((), 'int32', sharding=place.replicated(run.mesh))
  return State(step, params, opt, params if reference else None)


def resume(run: Run) -> Point:
  """The newest checkpoint of the workdir: in the middle of a stage, or between two."""
  meta = run.store.meta()
  number, step = meta['stage'], meta['step']
  if number == len(run.exp.stages):
    return Point(number, 0, None, meta['evaluations'])
  # A finished stage's state has that stage's optimizer.
  written = run.exp.stages[number if step else number - 1]
  reference = isinstance(written, RL) and written.algorithm.beta > 0
  state = run.store.restore(template(run, written, reference))
  run.progress.note(f'resuming at {run.exp.stages[number].name} step {step}')
  if step == 0:
    return enter(run, number, state.params, meta['evaluations'])
  return Point(number, step, state, meta['evaluations'])


def finish(run: Run, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
  """summary.json and report.png of everything measured so far."""
  run.writer.flush()
  rows = telemetry.read(run.workdir)
  git = provenance.git()
  facts = {
    'name': run.exp.name,
    'revision': provenance.short(git) if git else None,
    'seed': run.exp.seed,
  }
  return report.write(run.workdir, rows, evaluations, facts)
