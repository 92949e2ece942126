"""Teachers of a distillation stage: what is checked of them, what they say of a batch.

A live teacher is a checkpoint (of any model with the student's tokenizer). Its forward pass is a
compiled program of its own, run before the step on the step's batch: 2·active parameters flops a
token, no gradient, and K numbers a token kept, or the streams of the layers that are imitated. Its
prediction modules do not run. A stored one costs the read of its lines.

However many microbatches the step is split into, the teacher runs on the whole batch at once: the
activations of one layer for lines · length tokens at a time, with what is kept of every token, must
fit beside the student's state. Fewer lines, or a stored teacher, take less.

Batch number b is a function of (data, seed, b) alone. The packed stream of a live teacher goes
forward only: a resumed run reads, but does not compute, what came before.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import numpy as np

from r1jax.checkpoint.store import Store, resolve
from r1jax.core.errors import UserError
from r1jax.core.program import Program
from r1jax.curate import shards
from r1jax.data.stream import Shape, Stream
from r1jax.kernels.logprob.distribution import top
from r1jax.model import flops, transformer
from r1jax.model.config import ModelConfig
from r1jax.model.projection import Projection, Widths
from r1jax.model.transformer import Inputs, Transformer
from r1jax.sharding import place
from r1jax.tasks.task import Task
from r1jax.tokenizers.fingerprint import fingerprint
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import distillation, parameters, restored, supervised
from r1jax.train.distillation import Distillation, Hidden, Lesson, Live, Logits, Stored
from r1jax.train.experiment import Experiment
from r1jax.train.offline import Plan
from r1jax.train.run import Run
from r1jax.train.state import State

T = TypeVar('T')


class Lessons(NamedTuple):
  """(step) -> its lesson; inputs a line; what runs of the teacher's model where it is beside."""

  at: Callable[[int], Lesson]
  length: int
  teacher: ModelConfig | None


def plan(run: Run, stage: Distillation) -> Plan:
  """The stage's loss and batches; a teacher that does not fit is an error."""
  cfg = run.exp.model
  check(stage, cfg, run.tok)
  lessons = live(run, stage) if isinstance(stage.teacher, Live) else stored(run, stage)
  work = flops.training_flops(cfg, [lessons.length])
  if lessons.teacher is not None:
    work += flops.forward_flops(lessons.teacher, [lessons.length])

  def batch(step: int, _: State) -> Lesson:
    return lessons.at(step)

  def figures(lesson: Lesson) -> dict[str, float]:
    tokens = int((lesson.batch.inputs.segments_BL > 0).sum())
    return {'tokens': tokens, 'flops': work / lessons.length * tokens}

  loss = functools.partial(distillation.loss, cfg=cfg, stage=stage)
  return Plan(loss, functools.partial(distillation.denominators, cfg=cfg), batch, figures, None)


def heads(stage: Distillation, cfg: ModelConfig) -> dict[str, tuple[nn.Module, tuple]]:
  """A projection for each pair of hidden layers, 'project0', …, with the inputs of its init."""
  if not isinstance(stage.objective, Hidden):
    return {}
  to = described(stage.teacher).model.embed
  one = np.zeros((1, 1, cfg.embed), np.float32)
  projection = Projection(Widths(cfg.embed, to))
  return {f'project{i}': (projection, (one,)) for i in range(len(stage.objective.pairs))}


def check(stage: Distillation, cfg: ModelConfig, tok: Tokenizer) -> None:
  """UserError for a teacher that cannot teach this student: tokenizer, layers, k, temperature."""
  where, own = f'stage {stage.name}', fingerprint(tok)
  match stage.teacher:
    case Live(checkpoint):
      exp = described(stage.teacher)
      theirs, teacher = fingerprint(make_tokenizer(exp.tokenizer)), exp.model
      k = min(teacher.vocab, cfg.vocab)
    case Stored(folder):
      about = shards.about(folder)
      checkpoint, theirs, k, teacher = folder, about.tokenizer, about.k, None
  if theirs != own:
    raise UserError(
      f'{where}: the teacher {checkpoint} has another tokenizer; different tokenizers allow '
      'samples only: bin/curate --kind=samples, then SFT on the file'
    )
  match stage.objective:
    case Logits(how) if stage.objective.k > k:
      raise UserError(f'{where}: k={stage.objective.k}, but {checkpoint} gives {k}; ask for that')
    case Logits(how) if teacher is None and how.temperature != about.temperature:
      raise UserError(
        f'{where}: temperature {how.temperature}, but {checkpoint} was stored at '
        f'{about.temperature}; take that, or curate again'
      )
    case Hidden(pairs):
      for pair in pairs:
        for layer, model, who in zip(pair, (cfg, teacher), ('student', 'teacher')):
          if not 0 <= layer < len(model.layers):
            raise UserError(
              f'{where}: pair {pair}: the {who} has layers 0 … {len(model.layers) - 1}'
            )


def fingerprints(stage: Distillation, task: Task | None, tok: Tokenizer) -> list[str]:
  """Of the teacher's weights and of what both read, or of what a teacher has said.

  Makes a first batch, so that data which cannot be used is said before any long work.
  """
  match stage.teacher:
    case Live(checkpoint, data, length):
      directory, step = resolve(checkpoint)
      made = supervised.opened(data, length, task, tok)
      next(iter(Stream(made, data, Shape(stage.lines, length, 0), 0)))
      return [Store(directory).identity(step), *(s.fingerprint() for s in made)]
    case Stored(folder):
      return [shards.fingerprint(folder)]


def described(teacher: Live) -> Experiment:
  """The experiment that the teacher's checkpoint was made by."""
  directory, step = resolve(teacher.checkpoint)
  return restored.described(directory, Store(directory).meta(step))


def live(run: Run, stage: Distillation) -> Lessons:
  """The teacher's parameters on the run's devices, asked about every batch of the stream."""
  directory, number = resolve(stage.teacher.checkpoint)
  cfg = described(stage.teacher).model
  params = functools.cache(  # once, and not before the stage begins
    lambda: parameters.weights(Store(directory), number, cfg, run.mesh)
  )
  data, length, depths = stage.teacher.data, stage.teacher.length, len(run.exp.model.mtp)
  sources, shape = run.sources(data, length), Shape(stage.lines, length, depths)
  read = by_number(lambda: (b for b, _ in Stream(sources, data, shape, run.exp.seed)))
  f = functools.partial(teach, cfg=cfg, objective=stage.objective, vocab=run.exp.model.vocab)
  program = Program(f'{stage.name} teacher', f, run.announce)

  def at(step: int) -> Lesson:
    batch = place.rows(run.mesh, read(step))
    return Lesson(batch, *program(params(), batch.inputs._replace(ahead=())))

  return Lessons(at, length, dataclasses.replace(cfg, mtp=()))


def stored(run: Run, stage: Distillation) -> Lessons:
  """The lines of a folder, its likeliest k tokens."""
  lines, k, n = shards.Lines(stage.teacher.folder), stage.objective.k, stage.lines
  depths = len(run.exp.model.mtp)

  def at(step: int) -> Lesson:
    batch, ids_BLK, logp_BLK = lines.take(step * n, n, run.exp.seed, depths)
    return Lesson(batch, ids_BLK[..., :k], logp_BLK[..., :k])

  return Lessons(at, lines.about.length, None)


def teach(
  params: Any, inputs: Inputs, cfg: ModelConfig, objective: Logits | Hidden, vocab: int
) -> tuple:
  """(ids, log-probabilities, no layers), or (None, None, the layers that are imitated).

  vocab: the student's ids; those that only the teacher's model has, a padded vocabulary, have none
  of its probability.
  """
  out = Transformer(cfg).apply({'params': params}, inputs)
  match objective:
    case Logits(how, k):
      head_DV = transformer.head(params, cfg)[:, :vocab]
      return (*top(out.x_BLD, head_DV, k, how.temperature), ())
    case Hidden(pairs):
      return None, None, tuple(transformer.stream(out, cfg, layer) for _, layer in pairs)


def by_number(start: Callable[[], Iterator[T]]) -> Callable[[int], T]:
  """Items of an endless stream by number: the next at once, an earlier one from the start again."""
  held: list[Any] = [0, start()]

  def at(number: int) -> T:
    if number < held[0]:
      held[:] = 0, start()
    while True:
      held[0], item = held[0] + 1, next(held[1])
      if held[0] > number:
        return item

  return at
