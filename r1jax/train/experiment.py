"""Everything that defines a run, as one frozen value; it is written into every checkpoint."""

import dataclasses

from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import ModelConfig
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.make import TaskSpec
from r1jax.tokenizers.make import Byte, TokenizerSpec
from r1jax.train.rl import RL
from r1jax.train.supervised import SFT


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Saved every so many steps and at the end of each stage; the newest `keep` stay."""

  every: int = 1000
  keep: int = 3


@dataclasses.dataclass(frozen=True)
class Verifier:
  """Worker processes that grade, and the seconds each answer may take."""

  workers: int = 1
  seconds: float = 5.0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Stages run in order, each followed by an evaluation on held-out problems.

  init: a checkpoint whose parameters the first stage starts from; None: fresh ones from the seed.
  """

  name: str
  model: ModelConfig
  task: TaskSpec
  stages: tuple[SFT | RL, ...]
  evaluation: Evaluation = Evaluation()
  tokenizer: TokenizerSpec = Byte()
  seed: int = 0
  init: str | None = None
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  verifier: Verifier = Verifier()

  def __post_init__(self):
    names = [s.name for s in self.stages]
    if len(set(names)) < len(names):
      raise ValueError(f'stages need distinct names, got {names}')

  def first_step(self, stage: int) -> int:
    """Updates done before a stage starts: an RL step makes one for each minibatch."""
    return sum(s.steps * (s.minibatches if isinstance(s, RL) else 1) for s in self.stages[:stage])
