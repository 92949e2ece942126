"""Supervised stages: next-token cross-entropy on packed sequences, prediction modules beside it.

SFT counts completions only (prompts are masked); Pretrain counts every token and runs through
phases: V3's batch ramp and context extension (arXiv 2412.19437 §4.2, §4.3) are phases with more
lines, then longer ones under YaRN, over one optimizer and one schedule. Hybrid attention learns to
find things by its key tokens while its window is narrow: a phase can narrow it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from r1jax.algos import sft
from r1jax.data import sources
from r1jax.data.batch import Batch
from r1jax.data.mix import Mixture, Part
from r1jax.data.stream import Shape
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, MLA, Hybrid, Llama3, ModelConfig, Window, Yarn, with_attention
from r1jax.optim.optimizer import AdamW
from r1jax.tasks.task import Task
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import forward
from r1jax.train.forward import INDEXERS, Warmup
from r1jax.train.step import Aux


@dataclasses.dataclass(frozen=True)
class SFT:
  """A stage: `steps` batches of `lines` × `length` packed tokens of `data`, epoch after epoch."""

  optimizer: AdamW
  steps: int
  data: Mixture = Mixture((Part(sources.Worked()),))
  lines: int = 32
  length: int = 128
  microbatches: int = 1
  auxiliary: forward.Auxiliary = forward.Auxiliary()
  name: str = 'sft'

  def __post_init__(self):
    _check_split(self)
    _check_warmup(self.optimizer, [self.auxiliary])


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps of one batch shape.

  yarn: what extends the context in it; None: plain RoPE.
  window: of every layer that has one (Window, Hybrid), in this phase; None: the model's own.
  """

  steps: int
  lines: int = 32
  length: int = 128
  microbatches: int = 1
  auxiliary: forward.Auxiliary = forward.Auxiliary()
  yarn: Yarn | None = None
  window: int | None = None

  def __post_init__(self):
    _check_split(self)
    if self.window is not None:
      Window(self.window)


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """A stage on text; the schedule counts updates through all phases.

  held_out: what its loss is measured on afterwards, in `held_out_batches` batches of the last
  phase's shape; share them off the training data by `Text.share`.
  """

  optimizer: AdamW
  data: Mixture
  phases: tuple[Phase, ...]
  held_out: Mixture | None = None
  held_out_batches: int = 16
  name: str = 'pretrain'

  def __post_init__(self):
    if not self.phases:
      raise ValueError('pretraining needs at least one phase')
    if any(p.auxiliary.length for p in self.phases):
      raise ValueError('text is cut at lines: its length cannot be fitted; leave auxiliary.length')
    _check_warmup(self.optimizer, [p.auxiliary for p in self.phases])

  @property
  def steps(self) -> int:
    """Updates over all phases."""
    return sum(p.steps for p in self.phases)


@dataclasses.dataclass(frozen=True)
class Segment:
  """Steps first … last of a stage, all of one compiled program."""

  first: int
  last: int
  shape: Shape
  microbatches: int
  auxiliary: forward.Auxiliary
  model: ModelConfig


def segments(stage: SFT | Pretrain, model: ModelConfig) -> tuple[Segment, ...]:
  """A stage as its programs: one for SFT, one a phase for pretraining."""
  depths, first, found = len(model.mtp), 0, []
  for phase in (stage,) if isinstance(stage, SFT) else stage.phases:
    cfg = model if isinstance(stage, SFT) else narrowed(extended(model, phase.yarn), phase.window)
    shape = Shape(phase.lines, phase.length, depths)
    last = first + phase.steps
    cfg = forward.staged(cfg, phase.auxiliary)
    found.append(Segment(first, last, shape, phase.microbatches, phase.auxiliary, cfg))
    first = last
  return tuple(found)


def extended(model: ModelConfig, yarn: Yarn | None) -> ModelConfig:
  """The same weights under YaRN in every attention, or without it; Llama 3's scaling stays."""

  def one(attention: MLA | GQA) -> MLA | GQA:
    rotary = attention.rotary
    if yarn or not isinstance(rotary.scaling, Llama3):
      rotary = dataclasses.replace(rotary, scaling=yarn)
    return dataclasses.replace(attention, rotary=rotary)

  return with_attention(model, one)


def narrowed(model: ModelConfig, window: int | None) -> ModelConfig:
  """The same weights with another window in every layer that has one; None: as they are."""

  def one(attention: MLA | GQA) -> MLA | GQA:
    pattern = attention.pattern
    if window is None or not isinstance(pattern, Window | Hybrid):
      return attention
    return dataclasses.replace(attention, pattern=dataclasses.replace(pattern, window=window))

  return with_attention(model, one)


def mixtures(stage: SFT | Pretrain, model: ModelConfig) -> list[tuple[Mixture, Shape]]:
  """Everything that a stage reads, and in which shapes."""
  parts = segments(stage, model)
  held_out = stage.held_out if isinstance(stage, Pretrain) else None
  return [(stage.data, p.shape) for p in parts] + (
    [(held_out, parts[-1].shape)] if held_out else []
  )


def opened(data: Mixture, length: int, task: Task | None, tok: Tokenizer) -> list[sources.Source]:
  """What a mixture draws from, for lines of `length`; what cannot be opened is an error."""
  return [sources.make(part.source, task, tok, length) for part in data.parts]


def loss(
  params: Any,
  batch: Batch,
  d: forward.Denominators,
  cfg: ModelConfig,
  auxiliary: forward.Auxiliary,
) -> tuple[jax.Array, Aux]:
  """The whole objective on one part of a batch; `fill` is the share of it that is not padding."""
  out, scored = forward.run(params, cfg, batch, Sampling(), None, auxiliary.detach_mtp)
  total, weight = sft.cross_entropy(scored.logp, batch.weights_BL)
  warmup, load = isinstance(auxiliary.indexer, Warmup), out.load
  if warmup:  # nothing else has a gradient, and no router's bias moves
    beside, metrics, load = out.index.total / d.index, {'indexer_loss': tuple(out.index)}, {}
  else:
    beside, metrics = forward.auxiliary(params, cfg, batch, out, auxiliary, d)
  entropy = (scored.entropy * batch.weights_BL).sum()
  filled = (batch.inputs.segments_BL > 0).sum().astype(total.dtype)
  metrics |= {
    'loss': (total, weight),
    'entropy': (entropy, weight),
    'fill': (filled, filled * 0 + batch.weights_BL.size),
  }
  return beside if warmup else total / d.main + beside, Aux(metrics, load)


def denominators(batch: Batch, cfg: ModelConfig) -> forward.Denominators:
  """Target tokens divide the main loss."""
  return forward.denominators(batch, batch.weights_BL.sum(), cfg)


def _check_split(phase: SFT | Phase) -> None:
  if phase.lines % phase.microbatches:
    raise ValueError(f'{phase.lines} lines do not split into {phase.microbatches} microbatches')


def _check_warmup(optimizer: AdamW, auxiliaries: Sequence[forward.Auxiliary]) -> None:
  warmups = [isinstance(a.indexer, Warmup) for a in auxiliaries]
  if any(warmups) and not all(warmups):
    raise ValueError('phases with and without Warmup share no optimizer; make them two stages')
  if any(warmups) and optimizer.only != INDEXERS:
    raise ValueError(
      f'Warmup trains indexers alone, and its optimizer has only={optimizer.only!r}; '
      f'expected only={INDEXERS!r}'
    )
