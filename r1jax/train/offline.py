"""Stages over prepared batches: what to do is a `Plan`, how to loop is here.

Batches are functions of (seed, step), so that a resumed run repeats them and no position is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from r1jax.core import metrics
from r1jax.optim import optimizer as optim
from r1jax.sharding import place
from r1jax.train import step as steps
from r1jax.train import weights
from r1jax.train.experiment import Stage, keeps_reference
from r1jax.train.keeper import Keeper
from r1jax.train.point import Point
from r1jax.train.programs import train_program
from r1jax.train.run import Run
from r1jax.train.state import State
from r1jax.train.step import Loss


class Plan(NamedTuple):
  """What a stage over prepared batches does, beside its optimizer.

  loss: of any part of a batch. denominators: of the whole one. batch: of a step, rows first, on the
  host or on the devices. figures: the tokens and flops of a batch. evaluate: held-out figures.
  """

  loss: Loss
  denominators: Callable[[Any], Any]
  batch: Callable[[int, State], Any]
  figures: Callable[[Any], dict[str, float]]
  evaluate: Callable[[Any], dict[str, Any]] | None


def run_offline(run: Run, stage: Stage, plan: Plan, point: Point, keeper: Keeper) -> State:
  """The rest of a stage, one update a batch."""
  exp, state = run.exp, point.state
  if keeps_reference(stage) and state.reference is None:
    state = state._replace(reference=weights.copied(exp, state.params))
  optimizer = optim.make(stage.optimizer, weights.trained(exp, state.params))
  step = steps.make(
    plan.loss,
    plan.denominators,
    optimizer,
    stage.auxiliary.gamma,
    stage.microbatches,
    trains=weights.trains(exp),
  )
  train = train_program(run, f'{stage.name} step', step, state)
  for i in range(point.step, stage.steps):
    with run.timers('data'):
      batch = plan.batch(i, state)
      figures = plan.figures(batch)
    with run.timers('train'):
      state, measured = train(state, place.rows(run.mesh, batch))
      figures |= metrics.finish(measured)
    keeper.done(Point(point.stage, i + 1, state), figures)
  return state
