"""A whole run: initialize or resume, run the stages, evaluate after each, report.

Starting the same command again in the same workdir goes on from the newest checkpoint that is
whole, and ends with the same bits as a run that nothing interrupted.
"""

import math
import pathlib
from typing import Any

from r1jax.algos import lora
from r1jax.core.errors import UserError
from r1jax.eval import evaluate as evaluation
from r1jax.eval import report
from r1jax.optim import optimizer as optim
from r1jax.sharding import processes
from r1jax.train import judging, points, provenance, teaching, telemetry, weights
from r1jax.train import state as states
from r1jax.train.distillation import Distillation
from r1jax.train.experiment import Experiment, Stage, keeps_reference, with_key_ids, writes
from r1jax.train.keeper import Keeper
from r1jax.train.offline import Plan, run_offline
from r1jax.train.point import Point
from r1jax.train.preferences import Preference
from r1jax.train.profile import Window
from r1jax.train.reinforce import run_rl
from r1jax.train.rl import RL
from r1jax.train.run import Run, evaluations, open_run
from r1jax.train.stages import held_out_loss, run_supervised
from r1jax.train.state import State
from r1jax.train.supervised import SFT, Pretrain


def train(exp: Experiment, workdir: pathlib.Path, profile: Window | None = None) -> dict[str, Any]:
  """Runs an experiment to its end and returns the summary that process 0 writes."""
  if not exp.stages:
    raise UserError('config.stages is empty: there is nothing to train')
  exp = processes.together(lambda: weights.pinned(with_key_ids(exp), workdir))
  with open_run(exp, workdir, profile) as run:
    opened = lambda: {stage.name: plan(run, stage) for stage in exp.stages}
    plans = processes.together(opened)  # what they read is there, or no process begins
    point = resume(run) or begin(run)
    while True:
      point = run_stage(run, point, plans)
      if point.stage + 1 == len(exp.stages):
        break
      point = enter(run, point.stage + 1, point.state.params)
    return finish(run)


def begin(run: Run) -> Point:
  """The first stage, from fresh parameters or those of another checkpoint."""
  return enter(run, 0, weights.initial(run.exp, run.mesh))


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
  exp = run.exp
  params = weights.begin(exp, stage, params, run.mesh)
  mine = weights.trained(exp, params)
  if exp.lora:
    run.progress.note(f'LoRA: {lora.summary(params)}')
  optimizer = optim.make(exp.stages[stage].optimizer, mine)
  first = exp.first_step(stage)
  return Point(stage, 0, states.fresh(params, optimizer, run.mesh, first, mine))


def plan(run: Run, stage: Stage) -> Plan | None:
  """What a stage over prepared batches does; what it reads is opened, or it is an error."""
  match stage:
    case Preference():
      return judging.plan(run, stage)
    case Distillation():
      return teaching.plan(run, stage)
    case _:
      return None


def run_stage(run: Run, point: Point, plans: dict[str, Plan | None]) -> Point:
  """The rest of one stage, its checkpoint and its evaluation."""
  stage = run.exp.stages[point.stage]
  with run.telling(stage.name, stage.steps, point.step):
    keeper = Keeper(run, stage.steps)
    if point.step < stage.steps:
      run.profiler.before(point.step + 1)
      state = go(run, stage, point, keeper, plans[stage.name])
      point = Point(point.stage, stage.steps, state)
    if stage.name not in [e['stage'] for e in run.evaluations]:
      with keeper.resting(point):
        figures = evaluate(run, stage, point.state, plans[stage.name])
      run.keep_evaluations([*run.evaluations, figures])
      keeper.close(point)
  return point


def go(run: Run, stage: Stage, point: Point, keeper: Keeper, plan: Plan | None) -> State:
  """The rest of a stage by its kind of loop."""
  match stage:
    case RL():
      return run_rl(run, stage, point, keeper)
    case SFT() | Pretrain():
      return run_supervised(run, stage, point, keeper)
    case _:
      return run_offline(run, stage, plan, point, keeper)


def evaluate(run: Run, stage: Stage, state: State, plan: Plan | None) -> dict[str, Any]:
  """Held-out figures after a stage: loss on text, accuracy on the task, what a plan measures.

  Where the weights of its start are kept, what the plan measures of them too: `…_before`.
  """
  params = state.params
  name = f'after {stage.name.upper()}'
  run.progress.note(f'evaluating {name}')
  figures = {'name': name, 'stage': stage.name, 'step': stage.steps}
  with run.timers('evaluate'):
    if plan and plan.evaluate:
      figures |= plan.evaluate(params)
      if keeps_reference(stage):
        before = plan.evaluate(weights.whole(run.exp, state.reference, params))
        figures |= {f'{name}_before': x for name, x in before.items() if name != 'calibration_bins'}
    if writes(stage):
      return figures | evaluation.evaluate(
        run.engine, weights.model_only(run.exp.model, params), run.tok, run.task, run.grade,
        run.exp.evaluation,
      )  # fmt: skip
    if not isinstance(stage, Pretrain) or stage.held_out is None:
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
