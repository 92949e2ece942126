"""What a stage trains: the model's weights, or adapters on them, and heads of its own beside them.

    params = model's tree | {head: its tree}       Transformer.apply reads its own names alone

Heads belong to a stage: they are born when it begins, saved with it, and gone when the next one
begins; only the length fit's goes on, if the next stage has one too. With `Experiment.lora` the
model's weights stay those of `Experiment.init`; adapters and heads are what has gradients,
optimizer state and a place in checkpoints.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from r1jax.algos import lora
from r1jax.algos.ppo import PPO
from r1jax.checkpoint.store import FOLDER, Store, resolve
from r1jax.core import prng, tree
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.train import forward, parameters, ppo, preferences
from r1jax.train import state as states
from r1jax.train.distillation import Distillation
from r1jax.train.experiment import Experiment, Stage
from r1jax.train.preferences import Preference
from r1jax.train.rl import RL
from r1jax.train.supervised import Pretrain

Modules = dict[str, tuple[nn.Module, tuple]]


def heads(stage: Stage, cfg: ModelConfig) -> Modules:
  """What a stage trains beside the model: by name, a module and the inputs of its init."""
  own = _own_heads(stage, cfg)
  return own if isinstance(stage, Pretrain) else own | forward.heads(stage.auxiliary, cfg)


def _own_heads(stage: Stage, cfg: ModelConfig) -> Modules:
  match stage:
    case RL(algorithm=PPO() as algorithm):
      return ppo.heads(algorithm, cfg)
    case Preference():
      return preferences.heads(stage, cfg)
    case Distillation():
      from r1jax.train import teaching  # reads checkpoints, as do those who import this

      return teaching.heads(stage, cfg)
    case _:
      return {}


def boxed(exp: Experiment, stage: Stage) -> Any:
  """Shapes and logical axes of all weights of a stage, without memory."""
  model = place.abstract(Transformer(exp.model), dummy_inputs(exp.model))
  model = lora.boxed(model, exp.lora) if exp.lora else model
  own = heads(stage, exp.model).items()
  return model | {name: place.abstract(module, *inputs) for name, (module, inputs) in own}


def initial(exp: Experiment, mesh: jax.sharding.Mesh | None) -> Any:
  """What the first stage starts from: fresh weights or a checkpoint's, with fresh adapters."""
  if exp.init is None:
    return states.init_params(Transformer(exp.model), exp.seed, mesh, dummy_inputs(exp.model))
  directory, step = resolve(exp.init)
  if exp.lora is None:
    return parameters.masters(Store(directory), step, exp.model, mesh)
  base(exp)  # of these bytes: what lies there may change while they are trained on
  held = parameters.weights(Store(directory), step, exp.model, mesh)
  return parameters.adapted(held, exp.lora, exp.seed)


def pinned(exp: Experiment, workdir: pathlib.Path) -> Experiment:
  """Names the very step that adapters are trained on: the one that a run began with, also when its
  folder has later ones by now.
  """
  if exp.lora is None:
    return exp
  directory, step = resolve(exp.init)
  held = Store(workdir / FOLDER)
  if held.steps():
    before = held.meta(held.latest())['experiment']['init']
    if before and pathlib.PurePath(before).parent == pathlib.PurePath(str(directory)):
      return dataclasses.replace(exp, init=before)
  return dataclasses.replace(exp, init=str(directory / str(step)))


def base(exp: Experiment) -> str:
  """Which bytes the adapters belong to; asked once, when they are read."""
  return _identity(exp.init)


@functools.cache
def _identity(init: str) -> str:
  directory, step = resolve(init)
  return Store(directory).identity(step)


def begin(exp: Experiment, index: int, params: Any, mesh: jax.sharding.Mesh | None) -> Any:
  """The weights of stage `index` from those of the one before: its own heads, and no others."""
  stage, before = exp.stages[index], params
  params = model_only(exp.model, params)
  key = prng.fold(jax.random.key(exp.seed), index)
  modules, own = heads(stage, exp.model), {}
  for i, (name, (module, inputs)) in enumerate(modules.items()):
    if name == ppo.CRITIC:  # it begins as the policy
      own[name] = states.copy({part: params[part] for part in place.abstract(module, *inputs)})
    elif name == forward.REMAINING and name in before:
      own[name] = before[name]  # how long answers are is known by now
    else:
      own[name] = place.init(module, prng.fold(key, i), mesh, *inputs)
  return params | own


def model_only(cfg: ModelConfig, params: Any) -> Any:
  """The weights without heads."""
  return {name: params[name] for name in _names(cfg)}


def trains(exp: Experiment) -> Callable[[str], bool] | None:
  """Which leaves have a gradient, by path; None for all of them."""
  if exp.lora is None:
    return None
  names = _names(exp.model)
  return lambda path: lora.is_adapter(path) or path.split('/')[0] not in names


def trained(exp: Experiment, params: Any) -> Any:
  """The leaves that are trained and saved; None in place of the others."""
  only = trains(exp)
  return params if only is None else tree.split(params, lambda path, _: only(path))[0]


def whole(exp: Experiment, some: Any, params: Any) -> Any:
  """Trained leaves `some` of the model, made whole by what is frozen in `params`."""
  only = trains(exp)
  if only is None:
    return some
  rest = tree.split(model_only(exp.model, params), lambda path, _: only(path))[1]
  return tree.merge(some, rest)


def copied(exp: Experiment, params: Any) -> Any:
  """A copy of the model's trained leaves, which outlives the donated ones. See `whole`."""
  return states.copy(trained(exp, model_only(exp.model, params)))


@functools.cache
def _names(cfg: ModelConfig) -> frozenset[str]:
  return frozenset(place.abstract(Transformer(cfg), dummy_inputs(cfg)))
