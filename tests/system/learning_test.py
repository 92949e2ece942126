"""Learning: the loss falls and the reward rises in seconds, on tasks that are nearly nothing."""

import contextlib
import dataclasses
import io
import pathlib
import random
import string

import numpy as np

from r1jax.algos.grpo import GRPO
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.engine.engine import Engine
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rollout.collect import Limits
from r1jax.rollout.grading import Grading
from r1jax.tasks.file import File, from_functions
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import reinforce, stages
from r1jax.train import state as states
from r1jax.train.experiment import Experiment
from r1jax.train.point import Point
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.run import Run
from r1jax.train.supervised import SFT
from r1jax.train.telemetry import Timers

LAYER = Layer(GQA(heads=2, kv_heads=1, head=16, std=0.1), Dense(64, std=0.1))
CFG = ModelConfig(265, 32, (LAYER,) * 2, tied=True, std=0.1, remat='none')
LETTERS = 'abcd'


def make(seed):
  """'bdac': say the first letter."""
  word = ''.join(random.Random(seed).choices(LETTERS, k=4))
  return Example('', word, word[0], solution=word[:2])


def grade(calls):
  """A bandit: an answer is good where its first byte is a lower-case letter."""
  good = [float(text[:1] in string.ascii_lowercase and text != '') for _, text in calls]
  return [Grade(Outcome.CORRECT if g else Outcome.WRONG, g) for g in good]


def run_of(stage):
  tok = ByteTokenizer()
  exp = Experiment('learning', CFG, File('none'), (stage,), Evaluation())
  run = Run(
    exp=exp,
    workdir=pathlib.Path(),
    model=Transformer(CFG),
    task=from_functions('first letter', make, lambda example, answer: answer == example.answer),
    tok=tok,
    mesh=None,
    engine=None,
    grade=Grading(grade),
    store=None,
    writer=None,
    timers=Timers(),
    terminal=io.StringIO(),
    progress=Progress('test', 0, io.StringIO()),
    stop=None,
    profiler=None,
    record={},
  )
  run.engine = Engine(CFG, tok.stops, None, run.announce)
  return run


class Watch:
  """A keeper that keeps figures alone."""

  def __init__(self):
    self.seen = []

  def done(self, _, figures):
    self.seen.append(figures)

  def pause(self, _):
    """Never stops."""

  def resting(self, _):
    return contextlib.nullcontext()


def learn(go, stage, seed=0):
  """The figures of each step."""
  params = states.init_params(Transformer(CFG), seed, None, dummy_inputs(CFG))
  state = states.fresh(params, optim.make(stage.optimizer, params), None)
  watch = Watch()
  go(run_of(stage), stage, Point(0, 0, state), watch)
  return watch.seen


def test_sft_loss_falls():
  """From log 265 = 5.6 nats; what no model can know (a letter of 4 in 12 tokens) is not asked."""
  data = Mixture((Part(Worked(24)),))
  stage = SFT(AdamW(Constant(1e-2, warmup=3)), steps=40, data=data, lines=8, length=64)
  loss = [f['loss'] for f in learn(stages.run_supervised, stage)]
  assert 5 < loss[0] < 7 and np.mean(loss[-5:]) < 0.6


def test_grpo_reward_rises():
  """Of 265 tokens 26 are good ones: a tenth at first."""
  algorithm = dataclasses.replace(GRPO(group=16), beta=0.0)
  stage = RL(
    AdamW(Constant(1e-2), weight_decay=0.0),
    steps=15,
    algorithm=algorithm,
    prompts=8,
    limits=Limits(prompt=8, completion=2),
  )
  figures = learn(reinforce.run_rl, stage)
  reward = [f['reward'] for f in figures]
  assert reward[0] < 0.25 and np.mean(reward[-3:]) > 0.8
  assert max(f['sampled_difference'] for f in figures) < 1e-4
