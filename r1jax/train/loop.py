"""A whole run: initialize or resume, run the stages, evaluate after each, report.

Starting the same command again in the same workdir goes on from the newest checkpoint that is
whole, and ends with the same bits as a run that nothing interrupted.
"""

import math
import pathlib
from typing import Any

from r1jax.checkpoint.store import Store, resolve
from r1jax.eval import evaluate as evaluation
from r1jax.eval import report
from r1jax.model.transformer import dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.sharding import processes
from r1jax.train import parameters, points, provenance, telemetry
from r1jax.train import state as states
from r1jax.train.experiment import Experiment, Stage
from r1jax.train.keeper import Keeper
from r1jax.train.point import Point
from r1jax.train.profile import Window
from r1jax.train.rl import RL
from r1jax.train.run import Run, evaluations, open_run
from r1jax.train.stages import held_out_loss, run_rl, run_supervised
from r1jax.train.supervised import Pretrain


def train(exp: Experiment, workdir: pathlib.Path, profile: Window | None = None) -> dict[str, Any]:
  """Runs an experiment to its end and returns the summary that process 0 writes."""
  with open_run(exp, workdir, profile) as run:
    point = resume(run) or begin(run)
    while True:
      point = run_stage(run, point)
      if point.stage + 1 == len(exp.stages):
        break
      point = enter(run, point.stage + 1, point.state.params)
    return finish(run)


def begin(run: Run) -> Point:
  """The first stage, from fresh parameters or those of another checkpoint."""
  if run.exp.init is None:
    return enter(
      run, 0, states.init_params(run.model, run.exp.seed, run.mesh, dummy_inputs(run.exp.model))
    )
  directory, step = resolve(run.exp.init)
  return enter(run, 0, parameters.masters(Store(directory), step, run.exp.model, run.mesh))


def resume(run: Run) -> Point | None:
  """The newest whole checkpoint of the workdir; None where there is none."""
  point = points.newest(run.exp, run.mesh, run.store, run.progress.note)
  if point is not None:
    stage = run.exp.stages[point.stage]
    run.saved = int(point.state.step)
    done = [s.name for s in run.exp.stages[: point.stage + (point.step == stage.steps)]]
    run.evaluations = [e for e in evaluations(run.workdir) if e['stage'] in done]
    run.progress.note(f'resuming at {stage.name} step {point.step}')
  return point


def enter(run: Run, stage: int, params: Any) -> Point:
  """The start of a stage: its own optimizer around the parameters so far."""
  optimizer = optim.make(run.exp.stages[stage].optimizer, params)
  return Point(stage, 0, states.fresh(params, optimizer, run.mesh, run.exp.first_step(stage)))


def run_stage(run: Run, point: Point) -> Point:
  """The rest of one stage, its checkpoint and its evaluation."""
  stage = run.exp.stages[point.stage]
  with run.telling(stage.name, stage.steps, point.step):
    keeper = Keeper(run, stage.steps)
    if point.step < stage.steps:
      run.profiler.before(point.step + 1)
      go = run_rl if isinstance(stage, RL) else run_supervised
      point = Point(point.stage, stage.steps, go(run, stage, point, keeper))
    if stage.name not in [e['stage'] for e in run.evaluations]:
      with keeper.resting(point):
        figures = evaluate(run, stage, point.state.params)
      run.keep_evaluations([*run.evaluations, figures])
      keeper.close(point)
  return point


def evaluate(run: Run, stage: Stage, params: Any) -> dict[str, Any]:
  """Held-out figures after a stage: loss on text, or accuracy on the task."""
  name = f'after {stage.name.upper()}'
  run.progress.note(f'evaluating {name}')
  figures = {'name': name, 'stage': stage.name, 'step': stage.steps}
  with run.timers('evaluate'):
    if not isinstance(stage, Pretrain):
      return figures | evaluation.evaluate(
        run.engine, params, run.tok, run.task, run.grade, run.exp.evaluation
      )
    if stage.held_out is None:
      return figures
    loss = held_out_loss(run, stage, params)
    return figures | {'held_out_loss': loss, 'perplexity': math.exp(loss)}


def finish(run: Run) -> dict[str, Any]:
  """summary.json and report.png of everything measured so far."""
  run.store.wait()
  made = processes.together(lambda: processes.leader() and write_report(run))
  processes.barrier('r1jax: the run has ended')
  return made or {'evaluations': run.evaluations}


def write_report(run: Run) -> dict[str, Any]:
  """The files, and the summary."""
  run.writer.flush()
  rows = telemetry.read(run.workdir)
  git = run.record['git']
  facts = {
    'name': run.exp.name,
    'revision': provenance.short(git) if git else None,
    'seed': run.exp.seed,
  }
  return report.write(run.workdir, rows, run.evaluations, facts)
