"""The stages: what supervised and reinforcement-learning steps do around their compiled programs.

Both loops are functions of where they start: batches, questions and random numbers follow from
(seed, stage, step) and the position in the data, so that a resumed run repeats them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.advantages import group_advantages
from r1jax.algos.shaping import shape
from r1jax.core import metrics, prng
from r1jax.core.program import Program
from r1jax.data import stream
from r1jax.data.mix import Mixture
from r1jax.data.prefetch import Prefetch
from r1jax.data.stream import Position
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import flops
from r1jax.optim import optimizer as optim
from r1jax.rewards import group as groups
from r1jax.rollout import collect
from r1jax.rollout.collect import Trajectories
from r1jax.rollout.trajectory import RLBatch, rl_batch, rows
from r1jax.sharding import place, processes
from r1jax.tasks.task import Example
from r1jax.train import rl, supervised
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train.keeper import Keeper
from r1jax.train.point import Pending, Point
from r1jax.train.rl import RL
from r1jax.train.run import Run
from r1jax.train.state import State
from r1jax.train.supervised import SFT, Pretrain, Segment


def run_supervised(run: Run, stage: SFT | Pretrain, point: Point, keeper: Keeper) -> State:
  """The rest of a stage, one program a segment."""
  length = None
  for segment in supervised.segments(stage, run.exp.model):
    changed = length not in (None, segment.shape.length)
    if changed and point.position is not None and point.step == segment.first:
      # What is left of the block was packed to another length.
      point = dataclasses.replace(point, position=stream.next_block(point.position))
    if point.step < segment.last:
      point = run_segment(run, stage, segment, point, keeper)
    length = segment.shape.length
  return point.state


def run_segment(
  run: Run, stage: SFT | Pretrain, segment: Segment, point: Point, keeper: Keeper
) -> Point:
  """The rest of a segment over packed batches."""
  state, position = point.state, point.position
  cfg, aux, shape = segment.model, segment.auxiliary, segment.shape
  step = steps.make(
    functools.partial(supervised.loss, cfg=cfg, auxiliary=aux),
    functools.partial(supervised.denominators, cfg=cfg),
    optim.make(stage.optimizer, state.params),
    aux.gamma,
    segment.microbatches,
  )
  train = train_program(run, f'{stage.name} step', step, state)
  per_token = flops.training_flops(cfg, [shape.length]) / shape.length
  with feed(run, stage.data, shape, position) as data:
    for i in range(point.step, segment.last):
      with run.timers('data'):
        batch, position = processes.together(lambda: next(data))
      with run.timers('train'):
        state, measured = train(state, batch)
        figures = metrics.finish(measured)
      figures['tokens'] = round(figures['fill'] * shape.lines * shape.length)
      figures['flops'] = per_token * figures['tokens']
      figures['skipped'] = stream.skipped(position)
      point = Point(point.stage, i + 1, state, position)
      keeper.done(point, figures)
  return point


@contextlib.contextmanager
def feed(
  run: Run, data: Mixture, shape: stream.Shape, position: Position | None = None
) -> Iterator[Iterator[tuple[Any, Position]]]:
  """(batch on the devices, position behind it) for ever, prepared in the background."""
  mine = place.lines_of(run.mesh, shape.lines)
  sources = run.sources(data, shape.length)
  batches = stream.Stream(sources, data, shape, run.exp.seed, mine, position)
  placed = ((place.rows(run.mesh, b, lines=mine, total=shape.lines), p) for b, p in batches)
  with Prefetch(placed) as ahead:
    yield ahead


def train_program(run: Run, what: str, step: Callable, state: State) -> Program:
  """The compiled step; the state is donated and keeps its place."""
  out = None if run.mesh is None else (place.of(state), None)
  return Program(what, step, run.announce, donate_argnums=0, out_shardings=out)


def held_out_loss(run: Run, stage: Pretrain, params: Any) -> float:
  """Mean cross-entropy in nats a token over the stage's held-out text."""
  segment = supervised.segments(stage, run.exp.model)[-1]
  cfg, aux = segment.model, segment.auxiliary

  def measure(params: Any, batch: Any) -> metrics.Mean:
    d = supervised.denominators(batch, cfg)
    return supervised.loss(params, batch, d, cfg, aux)[1].metrics['loss']

  score = Program(f'{stage.name} held-out loss', measure, run.announce)
  total = {}
  with feed(run, stage.held_out, segment.shape) as data:
    for _ in range(stage.held_out_batches):
      batch, _ = processes.together(lambda: next(data))
      total = metrics.add(total, metrics.fetch({'loss': score(params, batch)}))
  return metrics.finish(total)['loss']


def run_rl(run: Run, stage: RL, point: Point, keeper: Keeper) -> State:
  """The rest of a stage; each step is one rollout and `minibatches` updates."""
  cfg, state, pending = run.exp.model, point.state, point.pending
  step = steps.make(
    functools.partial(rl.loss, cfg=cfg, stage=stage),
    functools.partial(rl.denominators, cfg=cfg, stage=stage),
    optim.make(stage.optimizer, state.params),
    stage.auxiliary.gamma,
    stage.microbatches,
    rl.batch_axis,
  )
  if stage.algorithm.beta and state.reference is None:
    state = state._replace(reference=states.copy(state.params))
  train = train_program(run, f'{stage.name} step', step, state)
  score = scorer(run, f'{stage.name} log-probabilities', stage.sampling)
  whole = rl.reference_sampling(stage)
  refer = score if whole == stage.sampling else scorer(run, f'{stage.name} reference', whole)
  for i in range(point.step, stage.steps):
    here = dataclasses.replace(point, step=i)
    if pending is None:
      if stage.algorithm.beta and i and i % stage.refresh == 0:
        state = state._replace(reference=states.copy(state.params))
      with keeper.resting(dataclasses.replace(here, state=state, pending=None)):
        trajectories = rollout(run, stage, state.params, i)
      with run.timers('train'):
        pending = prepare(run, stage, state, trajectories, score, refer)
    here = dataclasses.replace(here, state=state, pending=pending)
    state, pending = updates(run, stage, here, train, keeper)
    figures = metrics.finish(pending.total) | pending.figures
    if point.pending and i == point.step:  # resumed within: its rollout took no time here
      figures = {name: value for name, value in figures.items() if name not in ('tokens', 'flops')}
    pending = None
    keeper.done(dataclasses.replace(here, step=i + 1, state=state, pending=None), figures)
  return state


def updates(
  run: Run, stage: RL, point: Point, train: Program, keeper: Keeper
) -> tuple[State, Pending]:
  """The updates of one rollout that are left; before each the run may stop and keep it."""
  state, pending = point.state, point.pending
  parts = minibatches(pending.batch, stage, prng.fold(run_key(run, stage), point.step))
  for k in range(pending.done, len(parts)):
    keeper.pause(dataclasses.replace(point, state=state, pending=pending))
    with run.timers('train'):
      placed = place.rows(run.mesh, parts[k], rl.batch_axis(parts[k]))
      state, measured = train(state, placed)
      total = metrics.add(pending.total, metrics.fetch(measured))
    pending = pending._replace(done=k + 1, total=total)
  return state, pending


def scorer(run: Run, what: str, sampling: Sampling) -> Program:
  """The compiled log-probabilities of a rollout's tokens."""
  return Program(
    what, functools.partial(rl.score, cfg=run.exp.model, sampling=sampling), run.announce
  )


def run_key(run: Run, stage: RL) -> jax.Array:
  """The stage's random key: from the run's seed and the stage's number."""
  return prng.fold(jax.random.key(run.exp.seed), run.exp.stages.index(stage))


def questions(run: Run, stage: RL, step: int) -> list[Example]:
  """The prompts of a step: the next ones of split rl. No solution, no gold goes to the trainer."""
  return run.task.examples('rl', step * stage.prompts, stage.prompts)


def rollout(run: Run, stage: RL, params: Any, step: int) -> Trajectories:
  """Samples and grades one step's groups."""
  asked, group = questions(run, stage, step), stage.algorithm.group
  with run.timers('rollout'):
    prompts_BP, lengths_B, samples = collect.sample(
      run.engine, params, run.tok, asked,
      group=group, key=prng.fold(run_key(run, stage), step), first=0, sampling=stage.sampling,
      limits=stage.limits,
    )  # fmt: skip
  with run.timers('reward'):
    written = collect.texts(run.tok, samples)
    repeated = [e for e in asked for _ in range(group)]
    grades = collect.graded(run.grade, repeated, written, samples)
    lengths = samples.length_B.tolist()
    grades = groups.regrade_all(grades, written, group, stage.rewards.parts(), lengths)
  return Trajectories(prompts_BP, lengths_B, samples, written, grades)


def prepare(
  run: Run, stage: RL, state: State, t: Trajectories, score: Program, refer: Program
) -> Pending:
  """Advantages of whole groups, then the log-probabilities that the objective compares with."""
  group, a = stage.algorithm.group, stage.algorithm
  reward_PG = jnp.asarray([g.reward for g in t.grades], jnp.float32).reshape(-1, group)
  shaped_PG = shape(reward_PG, t.samples.length_B.reshape(-1, group), stage.shaping)
  advantage_B = np.asarray(group_advantages(shaped_PG, a.scale)).reshape(-1)
  batch = rl_batch(t, advantage_B, len(run.exp.model.mtp), replay=stage.routing == 'replay')
  placed = place.rows(run.mesh, batch, rl.batch_axis(batch))
  reference_BL = processes.fetch(refer(state.reference, placed)) if a.beta else None
  old_BL = processes.fetch(score(state.params, placed)) if a.old == 'recomputed' else None
  used, length = int(t.prompt_lengths_B.sum() + t.samples.length_B.sum()), batch.sampled_BL.shape[1]
  # Trained on once; forward alone, without prediction modules, by the rollout and for what the
  # objective compares with.
  forwards = 1 + bool(a.beta) + (a.old == 'recomputed')
  alone = dataclasses.replace(run.exp.model, mtp=())
  row = flops.training_flops(run.exp.model, [length])
  row += forwards * flops.forward_flops(alone, [length])
  work = used * row / length
  figures = collect.telemetry(t.samples, t.texts, t.grades) | {'tokens': used, 'flops': work}
  return Pending(batch._replace(ref_BL=reference_BL, old_BL=old_BL), 0, {}, figures)


def minibatches(batch: RLBatch, stage: RL, key: jax.Array) -> list[RLBatch]:
  """Equal parts in a random order of samples (R1: 16 of them over one frozen π_old)."""
  n = len(batch.advantage_B)
  if stage.minibatches == 1:
    return [batch]
  order = np.asarray(jax.random.permutation(key, n))
  return [rows(batch, part) for part in np.split(order, stage.minibatches)]
