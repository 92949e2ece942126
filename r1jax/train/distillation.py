"""Distillation as a stage: a student learns from a teacher's logits or hidden layers.

    L = L_teacher + hard · L_CE + λ L_MTP + α L_balance

L_teacher is algos/distill: the divergence from the teacher's K likeliest tokens at every target
(`Logits`), or the mean squared error of projected layers (`Hidden`). The teacher runs beside, on
the same packed batch (`Live`), or has been asked before (`Stored`, by bin/curate). Logits [B, L, V]
exist a chunk at a time only, of student and teacher alike. What the batches are made of and how a
teacher runs is in teaching.py. A teacher's samples need no stage of their own: SFT on a file of
them.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from r1jax.algos import distill, sft
from r1jax.algos.distill import Distill
from r1jax.core import metrics
from r1jax.data import sources
from r1jax.data.batch import Batch
from r1jax.data.mix import Mixture, Part
from r1jax.kernels.logprob import logprobs
from r1jax.kernels.logprob.distribution import select
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Output, Transformer
from r1jax.optim.optimizer import AdamW
from r1jax.train import forward
from r1jax.train.step import Aux


@dataclasses.dataclass(frozen=True)
class Live:
  """A teacher that runs beside: its checkpoint, and the lines of `length` that both read."""

  checkpoint: str
  data: Mixture = Mixture((Part(sources.Worked()),))
  length: int = 128

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f'length={self.length}; a line holds 1 input or more')


@dataclasses.dataclass(frozen=True)
class Stored:
  """A folder of bin/curate --kind=logits: token lines with a teacher's likeliest tokens."""

  folder: str


def _check_hard(hard: float) -> None:
  if not 0 <= hard < math.inf:
    raise ValueError(f'hard={hard}; expected a weight of 0 or more')


@dataclasses.dataclass(frozen=True)
class Logits:
  """The divergence from the teacher's `k` likeliest tokens; hard: weight of the cross-entropy."""

  how: Distill = Distill()
  k: int = 32
  hard: float = 0.0

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f'k is {self.k}; expected 1 or more of the likeliest tokens')
    _check_hard(self.hard)


@dataclasses.dataclass(frozen=True)
class Hidden:
  """Layers that imitate the teacher's: (student's, teacher's) pairs, both counted from 0.

  weight: of their mean error; hard: of the cross-entropy, without which no head is learned.
  """

  pairs: tuple[tuple[int, int], ...]
  weight: float = 1.0
  hard: float = 1.0

  def __post_init__(self):
    if not self.pairs:
      raise ValueError("pairs is empty; expected at least one (student's layer, teacher's layer)")
    _check_hard(self.hard)


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A stage: `steps` batches of `lines` packed lines, epoch after epoch."""

  optimizer: AdamW
  steps: int
  teacher: Live | Stored
  objective: Logits | Hidden = Logits()
  lines: int = 32
  microbatches: int = 1
  auxiliary: forward.Auxiliary = forward.Auxiliary()
  name: str = 'distillation'

  def __post_init__(self):
    if min(self.steps, self.lines, self.microbatches) < 1:
      raise ValueError(
        f'steps={self.steps}, lines={self.lines}, microbatches={self.microbatches}; all must be ≥ 1'
      )
    if self.lines % self.microbatches:
      raise ValueError(f'{self.lines} lines do not split into {self.microbatches} microbatches')
    if isinstance(self.teacher, Stored) and isinstance(self.objective, Hidden):
      raise ValueError('stored teachers hold logits alone; for Hidden(…) take Live(checkpoint)')


class Lesson(NamedTuple):
  """A batch, and beside each target what the teacher says: of logits, or of each pair's layer."""

  batch: Batch
  ids_BLK: jax.Array | None = None
  logp_BLK: jax.Array | None = None
  streams: tuple[jax.Array, ...] = ()


def loss(
  params: Any, lesson: Lesson, d: forward.Denominators, cfg: ModelConfig, stage: Distillation
) -> tuple[jax.Array, Aux]:
  """The whole objective on one part of a batch."""
  batch, aux = lesson.batch, stage.auxiliary
  out = Transformer(cfg).apply({'params': params}, batch.inputs, None, None, aux.detach_mtp)
  total, measured = imitation(params, out, lesson, cfg, stage.objective)
  beside, more = forward.auxiliary(params, cfg, batch, out, aux, d)
  if stage.objective.hard:
    head = transformer.head(params, cfg)
    logp_BL = logprobs(out.x_BLD, head, batch.targets_BL).logp
    more['loss'] = sft.cross_entropy(logp_BL, batch.weights_BL)
    beside += stage.objective.hard * more['loss'][0] / d.tokens
  filled = (batch.inputs.segments_BL > 0).sum().astype(total.dtype)
  more['fill'] = (filled, filled * 0 + batch.weights_BL.size)
  return total / d.main + beside, Aux(measured | more, out.load)


def imitation(
  params: Any, out: Output, lesson: Lesson, cfg: ModelConfig, objective: Logits | Hidden
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Sum over the counted targets of how far the student is from its teacher, and the metrics."""
  mask_BL = lesson.batch.weights_BL > 0
  match objective:
    case Logits(how):
      said = select(out.x_BLD, transformer.head(params, cfg), lesson.ids_BLK, how.temperature)
      mean, told = distill.stored(*said, lesson.logp_BLK, mask_BL, how)
      return mean[0], told | {'divergence': mean}
    case Hidden(pairs, weight):
      total, told = 0.0, {}
      for i, ((layer, _), teacher_BLE) in enumerate(zip(pairs, lesson.streams)):
        student_BLD = transformer.stream(out, cfg, layer)
        projection_DE = params[f'project{i}']['weight']
        mean, more = distill.hidden(student_BLD, teacher_BLE, projection_DE, mask_BL)
        told |= {f'layer{layer}/{name}': m for name, m in (more | {'error': mean}).items()}
        total += mean[0]
      return weight * total / len(pairs), told


def denominators(lesson: Lesson, cfg: ModelConfig) -> forward.Denominators:
  """Counted targets divide what the teacher says, their weights the cross-entropy."""
  batch = lesson.batch
  return forward.denominators(batch, (batch.weights_BL > 0).sum(), cfg)
