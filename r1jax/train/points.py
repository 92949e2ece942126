"""Points of a run as checkpoints, and back.

    tree    step, params (router bias too; of LoRA the adapters alone), opt, reference, pending (a
            graded rollout not used up), older (the weights that write the one behind it)
    meta    config, stage, step in it, position in the data, questions asked, what a pending rollout
            has reported, updates before the older weights, of LoRA which base

Random keys are functions of (seed, stage, step) and need no saving.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.algos.ppo import PPO, Targets
from r1jax.checkpoint import leaves
from r1jax.checkpoint.store import Damaged, Store
from r1jax.core import config, tree
from r1jax.data import stream
from r1jax.engine.generate import Samples, empty_routes
from r1jax.model.config import ModelConfig
from r1jax.optim import optimizer as optim
from r1jax.rollout.collect import Trajectories
from r1jax.rollout.trajectory import RLBatch, rl_batch
from r1jax.sharding import place, processes
from r1jax.train import parameters, rl, weights
from r1jax.train.experiment import Experiment, Stage, keeps_reference
from r1jax.train.point import Pending, Point, Version
from r1jax.train.rl import RL
from r1jax.train.state import State


class Saved(NamedTuple):
  """The arrays of a checkpoint."""

  step: Any
  params: Any
  opt: Any
  reference: Any = None
  pending: RLBatch | None = None
  older: Any = None


def saved(exp: Experiment, mesh: jax.sharding.Mesh | None, point: Point) -> tuple[Saved, dict]:
  """(tree, meta) of a point; every process calls it."""
  pending, position, older = point.pending, point.position, point.older
  held = pending and place.rows(mesh, pending.batch, rl.batch_axis(pending.batch))
  if position is not None:
    position = stream.merge([np.array(p) for p in processes.exchange(position.tolist())]).tolist()
  meta = {
    'experiment': json.loads(config.to_json(exp)),
    'stage': point.stage,
    'step': point.step,
    'position': position,
    'asked': point.asked,
    'pending': pending and pending._replace(batch=None)._asdict(),
    'older': older and older.number,
    'base': weights.base(exp) if exp.lora else None,
  }
  state = point.state._replace(params=weights.trained(exp, point.state.params))
  return Saved(*state, held, older and older.params), meta


def newest(
  exp: Experiment, mesh: jax.sharding.Mesh | None, store: Store, say: Callable[[str], None]
) -> Point | None:
  """The newest checkpoint that is whole, None without any; damaged ones are named and set aside."""
  for step in reversed(store.steps()):
    try:
      return restore(exp, mesh, store, step)
    except Damaged as error:
      if step == store.steps()[0]:
        raise  # nothing older to go on from: the user decides
      say(f'{error}; going on from an older one')
      store.discard(step)
  return None


def restore(exp: Experiment, mesh: jax.sharding.Mesh | None, store: Store, step: int) -> Point:
  """The point that a checkpoint holds, on this run's mesh, whatever mesh wrote it."""
  meta = store.meta(step)
  stage = exp.stages[meta['stage']]
  wanted = template(exp, mesh, stage)
  if meta['pending']:
    wanted = wanted._replace(pending=pending_template(exp.model, mesh, stage, store.describe(step)))
  number = meta.get('older')  # before it was written there was none
  if number is not None:
    wanted = wanted._replace(older=weights.model_only(exp.model, wanted.params))
  got = store.restore(wanted, step)
  pending, position = None, meta['position']
  if meta['pending']:
    known = lambda x: math.nan if x is None else x  # JSON has no figure that is not finite
    held = meta['pending']
    total = {name: tuple(map(known, pair)) for name, pair in held['total'].items()}
    figures = {name: known(x) for name, x in held['figures'].items()}
    pending = Pending(processes.fetch(got.pending), held['done'], total, figures)
  position = None if position is None else np.array(position)
  state = State(*got[:4])
  if exp.lora:
    parameters.same_base(meta, weights.base(exp))
    frozen = weights.model_only(exp.model, weights.initial(exp, mesh))
    own = {name: x for name, x in state.params.items() if name not in frozen}
    mine = weights.model_only(exp.model, state.params)
    state = state._replace(params=weights.whole(exp, mine, frozen) | own)
  older = None if number is None else Version(number, got.older)
  return Point(meta['stage'], meta['step'], state, position, pending, asked(meta, stage), older)


def asked(meta: dict[str, Any], stage: Stage) -> int:
  """Questions asked; before steps could ask for more of them, `prompts` a rollout."""
  rollouts = meta['step'] + bool(meta['pending'])
  return meta.get('asked', rollouts * stage.prompts if isinstance(stage, RL) else 0)


def template(exp: Experiment, mesh: jax.sharding.Mesh | None, stage: Stage) -> Saved:
  """Shapes and places of a stage's state, without memory."""
  params = weights.trained(exp, place.templates(mesh, weights.boxed(exp, stage)))
  opt = place.like_templates(
    mesh, params, jax.eval_shape(optim.make(stage.optimizer, params).init, params)
  )
  step = jax.ShapeDtypeStruct((), 'int32', sharding=place.replicated(mesh))
  reference = weights.model_only(exp.model, params) if keeps_reference(stage) else None
  return Saved(step, params, opt, reference)


def pending_template(
  cfg: ModelConfig, mesh: jax.sharding.Mesh | None, stage: RL, held: dict[str, str]
) -> RLBatch:
  """Shapes and places of a pending batch: structure from the config, sizes from what is held."""
  routes = jax.eval_shape(lambda: empty_routes(cfg, 1, 2))
  one = np.ones((1, 1), np.int32)
  routes = jax.tree.map(lambda s: np.zeros(s.shape), routes)
  support = one[:, :, None] if stage.support == 'replay' else None
  samples = Samples(one, one, one[0], one[0], routes, support)
  t = Trajectories(one, one[0], samples, [''], [])
  batch = rl_batch(t, np.zeros(1), len(cfg.mtp), stage.routing == 'replay')
  batch = batch._replace(
    ref_BL=one if stage.algorithm.beta else None,
    old_BL=one if stage.algorithm.old == 'recomputed' else None,
    value_BL=one if isinstance(stage.algorithm, PPO) else None,
    targets=Targets(one, one) if isinstance(stage.algorithm, PPO) else None,
  )

  def shaped(path: str, axis: int) -> jax.ShapeDtypeStruct:
    found = leaves.parse(held[f'pending/{path}'])
    where = None if mesh is None else place.row_sharding(mesh, axis)
    return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=where)

  return tree.map_named(shaped, rl.batch_axis(batch))
