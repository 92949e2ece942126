"""A model of 20,000 parameters, a task in one file, and runs without a folder or processes."""

import dataclasses
import io
import pathlib

import jax
import pytest

from r1jax.algos.grpo import GRPO
from r1jax.data import preferences as data
from r1jax.data.mix import Mixture, Part
from r1jax.data.preferences import Mistakes
from r1jax.data.sources import Problems, Worked
from r1jax.engine.batch import Static
from r1jax.engine.engine import Engine
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import MLA, Layer, ModelConfig, MoE, Yarn
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rollout.collect import Limits
from r1jax.rollout.grading import Grading
from r1jax.sharding import place
from r1jax.tasks.file import File, load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import preferences, provenance
from r1jax.train import state as states
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.forward import Auxiliary
from r1jax.train.preferences import Preference
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.run import Run
from r1jax.train.supervised import SFT, Phase, Pretrain, extended
from r1jax.train.telemetry import Timers
from tests.train.stand_ins import SMALL

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


@pytest.fixture(scope='module')
def one_device():
  """Runs as on a machine with one device, among the eight of the tests."""
  real = jax.devices
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda *args: real(*args)[:1])
    yield


@pytest.fixture(scope='session')
def experiment() -> Experiment:
  """Three supervised steps, two of reinforcement learning, eight held-out problems.

  Static batches: one program a shape, for tests that are about something else.
  """
  aux = Auxiliary(balance=1e-2, gamma=1e-2)
  sft = SFT(SMOOTH, steps=3, data=Mixture((Part(Worked(16)),)), lines=8, length=64, auxiliary=aux)
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
  return Experiment(
    'tiny', CFG, File(str(TASK)), (sft, rl), evaluation, checkpoint=every, engine=Static()
  )


@pytest.fixture(scope='session')
def pretraining(experiment) -> Experiment:
  """Two plain phases of a batch ramp, one of longer lines under YaRN, on text; no task."""
  yarn = Yarn(factor=4.0, original=16, length=64)
  phases = (
    Phase(2, lines=2, length=16),
    Phase(3, lines=4, length=16, microbatches=2),
    Phase(1, lines=2, length=64, auxiliary=Auxiliary(mtp=0.1), yarn=yarn),
  )
  data = Mixture((Part(Problems(experiment.task, 40)),), block=4)
  stage = Pretrain(SMOOTH, data, phases, held_out=data, held_out_batches=2)
  model = extended(experiment.model, yarn)
  return dataclasses.replace(experiment, model=model, task=None, stages=(stage,))


@pytest.fixture(scope='session')
def params() -> dict:
  """Fresh parameters on one device; copy what is donated."""
  return states.init_params(Transformer(CFG), 0, None, dummy_inputs(CFG))


@pytest.fixture
def bare():
  """bare(experiment, mesh): a Run that grades in this process and writes nothing."""

  def make(exp, mesh=None, grade=None):
    tok, task = ByteTokenizer(), exp.task and load(exp.task)
    run = Run(
      exp=exp,
      workdir=None,
      model=Transformer(exp.model),
      task=task,
      tok=tok,
      mesh=mesh,
      engine=None,
      grade=Grading(grade or (lambda calls: [task.grade(*call) for call in calls])),
      store=None,
      writer=None,
      timers=Timers(),
      terminal=io.StringIO(),
      progress=Progress('test', 0, io.StringIO()),
      stop=None,
      profiler=None,
      record=provenance.record(),
    )
    run.engine = Engine(exp.model, tok.stops, mesh, run.announce)
    return run

  return make


@pytest.fixture(scope='module')
def staged(experiment):
  """staged(objective, …): a stage over four mistakes of the tiny task, two more held out."""

  def make(objective, **changes):
    given = {
      'optimizer': experiment.stages[0].optimizer,
      'steps': 2,
      'objective': objective,
      'data': Mistakes(4),
      'held_out': Mistakes(3, skip=4),
      'rows': 4,
      'width': 48,
      'auxiliary': Auxiliary(mtp=0.1, detach_mtp=True, balance=1e-2, gamma=1e-2),
    }
    return Preference(**given | changes)

  return make


@pytest.fixture(scope='module')
def small(experiment):
  """The experiment with a dense model of one layer and no prediction module: quick to compile."""
  return dataclasses.replace(experiment, model=SMALL)


@pytest.fixture(scope='module')
def judge(params):
  """judge(cfg, stage): parameters with the stage's heads, which are not near zero."""
  plain = states.init_params(Transformer(SMALL), 0, None, dummy_inputs(SMALL))

  def make(cfg, stage):
    modules = preferences.heads(stage, cfg).items()
    own = {k: place.init(m, jax.random.key(9), None, *x) for k, (m, x) in modules}
    return (plain if cfg == SMALL else params) | jax.tree.map(lambda x: 30 * x, own)

  return make


@pytest.fixture(scope='module')
def rows(experiment, staged):
  """rows(stage, start, count): completions of its documents."""

  def make(stage, start=0, count=None):
    docs, _ = preferences.opened(stage, load(experiment.task), ByteTokenizer())
    return data.taken(docs, start, stage.rows // stage.group if count is None else count, 0)

  return make
