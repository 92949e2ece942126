"""A model of 20,000 parameters, a task in one file, and runs without a folder or processes."""

import io
import pathlib

import jax
import pytest

from r1jax.algos.grpo import GRPO
from r1jax.engine.engine import Engine
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import MLA, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rollout.collect import Limits
from r1jax.tasks.file import File, load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import state as states
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.forward import Auxiliary
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.run import Run
from r1jax.train.supervised import SFT
from r1jax.train.telemetry import Timers

TASK = pathlib.Path(__file__).parents[1] / 'tasks' / 'my_task_example.py'
ATTENTION = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16, std=0.2)
EXPERTS = MoE(ffw=16, experts=4, active=2, std=0.2)
SPARSE = Layer(ATTENTION, EXPERTS)
CFG = ModelConfig(
  vocab=272,  # even, where the tokenizer has 265 ids
  embed=32,
  layers=(SPARSE,) * 2,
  mtp=(SPARSE,),
  std=0.3,
  remat='none',
)
LIMITS = Limits(prompt=13, completion=12)
# Adam's first update is g/(|g| + eps): a large eps keeps it smooth, so that it can be compared.
SMOOTH = AdamW(Constant(1e-2), eps=1e-2)


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """Compiling dominates these tests; programs half as fast are made in half the time."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def experiment() -> Experiment:
  """Three supervised steps, two of reinforcement learning, eight held-out problems."""
  aux = Auxiliary(balance=1e-2, gamma=1e-2)
  sft = SFT(SMOOTH, steps=3, examples=16, lines=8, length=64, auxiliary=aux)
  rl = RL(
    SMOOTH,
    steps=2,
    algorithm=GRPO(group=4, beta=0.1),
    prompts=4,
    minibatches=2,
    limits=LIMITS,
    auxiliary=Auxiliary(mtp=0.1, detach_mtp=True, balance=1e-2, gamma=1e-2),
  )
  evaluation = Evaluation(problems=8, batch=8, limits=LIMITS)
  every = Checkpoint(every=2, keep=9)
  return Experiment('tiny', CFG, File(str(TASK)), (sft, rl), evaluation, checkpoint=every)


@pytest.fixture(scope='session')
def params() -> dict:
  """Fresh parameters on one device; copy what is donated."""
  return states.init_params(Transformer(CFG), 0, None, dummy_inputs(CFG))


@pytest.fixture
def bare():
  """bare(experiment, mesh): a Run that grades in this process and writes nothing."""

  def make(exp, mesh=None, grade=None):
    tok, task = ByteTokenizer(), load(exp.task)
    run = Run(
      exp=exp,
      workdir=None,
      model=Transformer(exp.model),
      task=task,
      tok=tok,
      mesh=mesh,
      engine=None,
      grade=grade or (lambda calls: [task.grade(*call) for call in calls]),
      store=None,
      writer=None,
      timers=Timers(),
      progress=Progress('test', 0, io.StringIO()),
    )
    run.engine = Engine(exp.model, tok.stops, mesh, run.announce)
    return run

  return make
