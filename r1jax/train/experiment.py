"""Everything that defines a run, as one frozen value; it is written into every checkpoint."""

import dataclasses

from r1jax.algos.lora import LoRA
from r1jax.engine.batch import Paged
from r1jax.engine.make import EngineSpec
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import ModelConfig
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.make import TaskSpec
from r1jax.tokenizers.make import Byte, TokenizerSpec
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.properties import key_tokens
from r1jax.train.distillation import Distillation
from r1jax.train.forward import Warmup
from r1jax.train.ppo import separate
from r1jax.train.preferences import Preference
from r1jax.train.rl import RL
from r1jax.train.supervised import SFT, Pretrain

Stage = Pretrain | SFT | RL | Preference | Distillation


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Saved every so many steps and at the end of each stage, while training goes on.

  The newest `keep` stay, and those of updates that `keep_every` divides. deadline: seconds that a
  preempted run of one process waits for a safe point before it saves where it last stood still;
  several wait for the safe point (train/stop.py).
  """

  every: int = 1000
  keep: int = 3
  keep_every: int | None = None
  deadline: float = 20.0

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'checkpoint.every is {self.every}; it must be ≥ 1')


@dataclasses.dataclass(frozen=True)
class Verifier:
  """Worker processes that grade, and the seconds each answer may take."""

  workers: int = 1
  seconds: float = 5.0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Stages run in order, each followed by an evaluation.

  task: what SFT and RL learn and what is evaluated after them, on held-out problems; a run that
  only pretrains needs none.
  init: a checkpoint whose parameters the first stage starts from; None: fresh ones from the seed.
  lora: adapters on the weights of `init`; they alone are trained and saved.
  engine: what writes the completions of RL and evaluation.
  """

  name: str
  model: ModelConfig
  task: TaskSpec | None
  stages: tuple[Stage, ...]
  evaluation: Evaluation = Evaluation()
  tokenizer: TokenizerSpec = Byte()
  seed: int = 0
  init: str | None = None
  lora: LoRA | None = None
  mesh: Mesh = Mesh()
  engine: EngineSpec = Paged()
  checkpoint: Checkpoint = Checkpoint()
  verifier: Verifier = Verifier()

  def __post_init__(self):
    names = [s.name for s in self.stages]
    if len(set(names)) < len(names):
      raise ValueError(f'stages need distinct names, got {names}')
    needy = [s.name for s in self.stages if self.task is None and not isinstance(s, Pretrain)]
    if needy:
      raise ValueError(
        f'stage {needy[0]} needs a task, config.task is none; only Pretrain does not'
      )

    for stage in self.stages:
      if not isinstance(stage, SFT | Pretrain) and isinstance(stage.auxiliary.indexer, Warmup):
        raise ValueError(f'stage {stage.name}: indexers warm up in SFT and Pretrain alone')
    if self.lora and self.init is None:
      raise ValueError('lora adapts trained weights: name their checkpoint by config.init')
    if self.lora and any(isinstance(s, RL) and separate(s.algorithm) for s in self.stages):
      raise ValueError('lora and a critic with a trunk of its own do not go together: set Shared')

  def first_step(self, stage: int) -> int:
    """Updates done before a stage starts: an RL step makes one for each minibatch."""
    return sum(s.steps * (s.minibatches if isinstance(s, RL) else 1) for s in self.stages[:stage])


def with_key_ids(exp: Experiment) -> Experiment:
  """With key ids from the tokenizer, if layers ask for them and the model has none."""
  if exp.model.key_ids or not exp.model.asks_for_key_ids:
    return exp
  ids = key_tokens(make_tokenizer(exp.tokenizer), ('punctuation', 'paragraph'))
  return dataclasses.replace(exp, model=dataclasses.replace(exp.model, key_ids=ids))


def keeps_reference(stage: Stage) -> bool:
  """Whether a frozen copy of the weights lies in the state: for a KL, or for preferences."""
  match stage:
    case RL():
      return stage.algorithm.beta > 0
    case Preference():
      return stage.reference
    case _:
      return False


def writes(stage: Stage) -> bool:
  """Whether its model answers a task's questions: text alone teaches none, and judges do not."""
  match stage:
    case Pretrain():
      return False
    case Preference():
      return stage.reference
    case _:
      return True
