"""The loop of a reinforcement-learning stage: rollout, what the objective compares with, updates.

It is a function of where it starts: questions, random numbers and minibatches follow from (seed,
stage, step) and the number of questions asked, so that a resumed run repeats them. With
`RL.staleness` the rollout of the next step is written meanwhile (train/ahead.py).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from r1jax.algos import ppo as ppo_algorithm
from r1jax.algos.advantages import group_advantages
from r1jax.algos.ppo import PPO
from r1jax.checkpoint import checksum
from r1jax.core import metrics, prng
from r1jax.core.program import Program
from r1jax.model import flops
from r1jax.optim import optimizer as optim
from r1jax.rollout import collect
from r1jax.rollout.trajectory import RLBatch, rl_batch, rows
from r1jax.sharding import place, processes
from r1jax.train import ppo, rl, weights
from r1jax.train import step as steps
from r1jax.train.ahead import Ahead
from r1jax.train.keeper import Keeper
from r1jax.train.point import Pending, Point, Version
from r1jax.train.programs import train_program
from r1jax.train.rl import RL, Rollout
from r1jax.train.rollouts import rollout, run_key
from r1jax.train.run import Run
from r1jax.train.state import State


def run_rl(run: Run, stage: RL, point: Point, keeper: Keeper) -> State:
  """The rest of a stage; each step is one rollout and `minibatches` updates."""
  exp, state = run.exp, point.state
  step = steps.make(
    functools.partial(rl.loss, cfg=exp.model, stage=stage),
    functools.partial(rl.denominators, cfg=exp.model, stage=stage),
    optim.make(stage.optimizer, weights.trained(exp, state.params)),
    stage.auxiliary.gamma,
    stage.microbatches,
    rl.batch_axis,
    weights.trains(exp),
  )
  if stage.algorithm.beta and state.reference is None:
    state = state._replace(reference=weights.copied(exp, state.params))
  train = train_program(run, f'{stage.name} step', step, state, weights.trains(exp))
  against, here = comparison(run, stage), dataclasses.replace(point, state=state)
  with Ahead(run, stage, keeper) as ahead:
    for _ in range(point.step, stage.steps):
      here = one_step(run, stage, here, train, against, keeper, ahead)
  return here.state


def one_step(
  run: Run,
  stage: RL,
  here: Point,
  train: Callable,
  against: 'Comparison',
  keeper: Keeper,
  ahead: Ahead,
) -> Point:
  """The rest of a step: its rollout unless that is pending, the next one begun, the updates."""
  exp, resumed = run.exp, here.pending is not None
  if not resumed:
    if stage.algorithm.beta and here.step and here.step % stage.refresh == 0:
      reference = weights.copied(exp, here.state.params)
      here = dataclasses.replace(here, state=here.state._replace(reference=reference))
    here = asked(run, stage, here, against, keeper, ahead)
  here = ahead.begin(here)
  state, pending = updates(run, stage, here, train, keeper)
  figures = metrics.finish(pending.total) | pending.figures
  if resumed:  # within: its rollout took no time here
    figures = {name: value for name, value in figures.items() if name not in ('tokens', 'flops')}
  here = dataclasses.replace(here, step=here.step + 1, state=state, pending=None)
  keeper.done(here, figures)
  return here


def asked(
  run: Run, stage: RL, here: Point, against: 'Comparison', keeper: Keeper, ahead: Ahead
) -> Point:
  """The point with a rollout of its older weights, of the newest where it has none; tells which."""
  exp, state = run.exp, here.state
  mine = weights.trained(exp, weights.model_only(exp.model, state.params))
  newest = Version(int(state.step), mine)
  by = here.older or newest
  with keeper.resting(here):
    done = ahead.take()
    if done is None:  # the first of a stage, and after resuming
      policy = weights.whole(exp, by.params, state.params)
      done = rollout(run, stage, policy, here.step, here.asked)
  with run.timers('train'):
    pending = prepare(run, stage, state, done, against)
    sums = checksum.start(jax.tree.leaves(by.params))()
  if here.older:
    jax.tree.map(lambda x: x.delete(), here.older.params)  # whoever still holds the point
  used = {
    'weights_version': by.number,
    'weights_checksum': sum(sums) % 2**32,
    'staleness': newest.number - by.number,
  }
  pending = pending._replace(figures=pending.figures | used)
  return dataclasses.replace(here, pending=pending, asked=here.asked + done.asked, older=None)


def updates(
  run: Run, stage: RL, point: Point, train: Callable, keeper: Keeper
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


class Comparison(NamedTuple):
  """Programs for what the objective compares with: π_old, the reference, PPO's values."""

  score: Program
  refer: Program
  value: Program


def comparison(run: Run, stage: RL) -> Comparison:
  """The programs of a stage; one that is never called is never compiled."""
  make = lambda what, f, **kw: Program(
    f'{stage.name} {what}', functools.partial(f, cfg=run.exp.model, **kw), run.announce
  )
  score = make('log-probabilities', rl.score, sampling=stage.sampling)
  whole = rl.reference_sampling(stage)
  same = whole == stage.sampling
  refer = score if same else make('reference', rl.score, sampling=whole)
  return Comparison(score, refer, make('values', rl.values, stage=stage))


def prepare(run: Run, stage: RL, state: State, done: Rollout, against: Comparison) -> Pending:
  """Advantages of whole groups, and what the objective compares with."""
  a, t, exp = stage.algorithm, done.kept, run.exp
  shaped_PG, critic = rl.shaped(t, stage), isinstance(a, PPO)
  # PPO's advantages are of tokens and come from its values; what stands here is the reward.
  advantage_B = np.asarray(shaped_PG if critic else group_advantages(shaped_PG, a.scale)).reshape(
    -1
  )
  batch = rl_batch(t, advantage_B, len(exp.model.mtp), replay=stage.routing == 'replay')
  placed = place.rows(run.mesh, batch, rl.batch_axis(batch))
  figures, ask = dict(done.figures), lambda f, params: processes.fetch(f(params, placed))
  if a.beta:
    reference = weights.whole(exp, state.reference, state.params)
    batch = batch._replace(ref_BL=ask(against.refer, reference))
  if a.old == 'recomputed':
    policy = weights.model_only(exp.model, state.params)
    batch = batch._replace(old_BL=ask(against.score, policy))
  if critic:
    batch, judged = criticized(batch, ask(against.value, state.params), stage)
    figures |= judged
  figures |= {'tokens': done.tokens, 'flops': work(run, stage, done, batch.sampled_BL.shape[1])}
  return Pending(batch, 0, {}, figures)


def criticized(batch: RLBatch, value_BL: np.ndarray, stage: RL) -> tuple[RLBatch, dict[str, float]]:
  """The batch with PPO's values and targets, of the whole rollout, and how good the values were."""
  a, old_BL = stage.algorithm, batch.sampled_BL if batch.old_BL is None else batch.old_BL
  mask_BL = rl.masks(batch, stage) & np.isfinite(old_BL)  # as in the loss
  to = ppo_algorithm.targets(batch.advantage_B, value_BL, old_BL, batch.ref_BL, mask_BL, a)
  figures = {'explained_variance': ppo.explained(value_BL, to, mask_BL)}
  return batch._replace(value_BL=value_BL, targets=jax.tree.map(np.asarray, to)), figures


def work(run: Run, stage: RL, done: Rollout, length: int) -> float:
  """Flops of a step: training on what was kept; forward alone, without prediction modules, by the
  rollout, of what was dropped too, and for what the objective compares with. A separate critic
  counts as a second model.
  """
  a, model = stage.algorithm, run.exp.model
  alone = flops.forward_flops(dataclasses.replace(model, mtp=()), [length])
  row = flops.training_flops(model, [length])
  row += (bool(a.beta) + (a.old == 'recomputed') + isinstance(a, PPO)) * alone
  if ppo.separate(a):
    row += flops.training_flops(dataclasses.replace(model, mtp=()), [length])
  return (collect.count(done.kept) * row + done.tokens * alone) / length


def minibatches(batch: RLBatch, stage: RL, key: jax.Array) -> list[RLBatch]:
  """Equal parts in a random order of samples (R1: 16 of them over one frozen π_old)."""
  n = len(batch.advantage_B)
  if stage.minibatches == 1:
    return [batch]
  order = np.asarray(jax.random.permutation(key, n))
  return [rows(batch, part) for part in np.split(order, stage.minibatches)]
