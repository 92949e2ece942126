"""The loop of supervised stages around their compiled programs.

It is a function of where it starts: batches follow from (seed, stage, step) and the position in the
data, so that a resumed run repeats them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from r1jax.core import metrics
from r1jax.core.program import Program
from r1jax.data import stream
from r1jax.data.mix import Mixture
from r1jax.data.prefetch import Prefetch
from r1jax.data.stream import Position
from r1jax.model import flops
from r1jax.optim import optimizer as optim
from r1jax.sharding import place, processes
from r1jax.train import step as steps
from r1jax.train import supervised, weights
from r1jax.train.keeper import Keeper
from r1jax.train.point import Point
from r1jax.train.programs import train_program
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
    optim.make(stage.optimizer, weights.trained(run.exp, state.params)),
    aux.gamma,
    segment.microbatches,
    trains=weights.trains(run.exp),
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
