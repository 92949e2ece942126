"""What stands in for parts of a run: a grader, a keeper, the start of a stage, rollouts by hand."""

import contextlib
import dataclasses

import jax
import numpy as np

from r1jax.algos.dpo import DPO
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.engine.generate import Samples
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.rollout.collect import Trajectories
from r1jax.tasks.task import Grade, Outcome
from r1jax.train import rl, rollouts
from r1jax.train import state as states
from r1jax.train.point import Point

LAYER = Layer(GQA(2, 1, 8, std=0.3), Dense(16, std=0.3))
SMALL = ModelConfig(272, 16, (LAYER,), std=0.5, remat='none')
OBJECTIVES = (DPO(0.5), Pairwise(0.1), Pointwise(), Process())
NOTHING = states.State(None, None, None)


def grade(calls):
  """Rewards by the bytes of an answer: a random model has no other merits."""
  return [Grade(Outcome.WRONG, sum(map(ord, text)) % 7 / 6, {}) for _, text in calls]


def fresh(exp, stage, mesh=None):
  """The start of a stage."""
  params = states.init_params(Transformer(exp.model), 0, mesh, dummy_inputs(exp.model))
  state = states.fresh(params, optim.make(stage.optimizer, params), mesh)
  return Point(exp.stages.index(stage), 0, state)


class Collect:
  """A keeper that keeps points (on the host: the next step donates their weights) and figures."""

  def __init__(self):
    self.seen, self.paused = [], []

  def done(self, point, figures):
    self.seen.append((point.step, moved(point, jax.device_get), figures))

  def pause(self, point):
    self.paused.append(moved(point, jax.device_get))

  def resting(self, _):
    return contextlib.nullcontext()


def moved(point, put):
  """The point with its weights put elsewhere."""
  older = point.older and point.older._replace(params=put(point.older.params))
  return dataclasses.replace(point, state=put(point.state), older=older)


def again(point):
  """The point as a new process has it."""
  return moved(point, jax.device_put)


def done(t):
  """The rollout that kept these trajectories."""
  return rl.Rollout(t, 4, {}, rollouts.collect.count(t))


def hand_made(reward, first=0):
  """Trajectories of one prompt token and one answer token each, the answer being the row + 1."""
  n = len(reward)
  ones = np.ones(n, int)
  tokens_BT = first + ones.cumsum()[:, None]
  samples = Samples(tokens_BT, -np.ones((n, 1)), ones, ones > 0, ((None,), (None,)))
  grades = [Grade(Outcome.WRONG, float(r)) for r in reward]
  return Trajectories(ones[:, None], ones, samples, [''] * n, grades)
