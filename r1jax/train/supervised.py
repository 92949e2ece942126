"""Supervised fine-tuning: cross-entropy on worked solutions, prompts masked, sequences packed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from r1jax.algos import sft
from r1jax.core.errors import UserError
from r1jax.data import stream
from r1jax.data.batch import Batch, Row
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.optim.optimizer import AdamW
from r1jax.tasks.task import Task
from r1jax.tokenizers import chat
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import forward
from r1jax.train.step import Aux


@dataclasses.dataclass(frozen=True)
class SFT:
  """A stage: `steps` batches of `lines` × `length` packed tokens.

  They hold the first `examples` worked solutions of the task, epoch after epoch.
  """

  optimizer: AdamW
  steps: int
  examples: int = 2000
  lines: int = 32
  length: int = 128
  microbatches: int = 1
  auxiliary: forward.Auxiliary = forward.Auxiliary()
  name: str = 'sft'

  def __post_init__(self):
    if self.lines % self.microbatches:
      raise ValueError(f'{self.lines} lines do not split into {self.microbatches} microbatches')


def rows(task: Task, tok: Tokenizer, count: int) -> list[Row]:
  """Worked solutions as token rows with masked prompts."""
  examples = task.examples('sft', 0, count)
  if len(examples) < count:
    raise UserError(
      f'task {task.name} has {len(examples)} worked problems for sft, the stage asks for {count}'
    )
  missing = [e.id for e in examples if e.solution is None or e.answer is None]
  if missing:
    raise UserError(
      f'task {task.name} gives no worked solution for {missing[0]}; '
      'SFT needs Example.solution and .answer'
    )
  return [Row(*chat.render(tok, e.question, e.solution, e.answer)) for e in examples]


def batches(stage: SFT, task: Task, tok: Tokenizer, depths: int, seed: int) -> Iterator[Batch]:
  """The stage's packed batches, in the seed's order; what does not fit is an error at once."""
  shape = stream.Shape(stage.lines, stage.length, depths)
  return stream.packed(rows(task, tok, stage.examples), shape, seed)


def loss(
  params: Any, batch: Batch, d: forward.Denominators, cfg: ModelConfig, stage: SFT
) -> tuple[jax.Array, Aux]:
  """The whole objective on one part of a batch."""
  out, scored = forward.run(params, cfg, batch, Sampling(), None, stage.auxiliary.detach_mtp)
  total, weight = sft.cross_entropy(scored.logp, batch.weights_BL)
  beside, metrics = forward.auxiliary(params, cfg, batch, out, stage.auxiliary, d)
  entropy = (scored.entropy * batch.weights_BL).sum()
  metrics |= {'loss': (total, weight), 'entropy': (entropy, weight)}
  return total / d.main + beside, Aux(metrics, out.load)


def denominators(batch: Batch, cfg: ModelConfig) -> forward.Denominators:
  """Target tokens divide the main loss."""
  return forward.denominators(batch, batch.weights_BL.sum(), cfg)


def tokens(batch: Batch) -> int:
  """Tokens that are not padding."""
  return int((batch.inputs.segments_BL > 0).sum())
