"""The four kinds of data that a model makes, from prompts to a file or folder on the disk.

Rows are written as they come; of logits the kept samples' tokens are held (8 bytes a token) until
all are there, since packing wants the longest first. What a kind keeps: select.py. A length
that could not hold the longest possible row is refused before anything is sampled.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.core.program import Announce, Program, silent
from r1jax.curate import output, select, shards
from r1jax.curate.sample import Answers, Asking, Sampled, sample, width
from r1jax.curate.select import Row
from r1jax.data.batch import Batch
from r1jax.data.batch import Row as Tokens
from r1jax.engine.make import AnyEngine
from r1jax.kernels.logprob.distribution import Top, top
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer
from r1jax.rollout.collect import Grader
from r1jax.tasks.task import Example, Outcome
from r1jax.tokenizers.fingerprint import fingerprint
from r1jax.tokenizers.tokenizer import Tokenizer

Keep = Literal['correct', 'all']


@dataclasses.dataclass(frozen=True)
class Maker:
  """What makes data: a model with its tools. narrate is told (prompts done, figure=…)."""

  engine: AnyEngine
  params: Any
  tok: Tokenizer
  grade: Grader
  asking: Asking
  first: int = 0
  narrate: Callable[..., None] = lambda done, **figures: None
  announce: Announce = silent


@dataclasses.dataclass(frozen=True)
class Logits:
  """What is kept of the teacher's logits; length None: twice the longest possible row."""

  teacher: str
  k: int = 32
  temperature: float = 1.0
  length: int | None = None
  lines: int = 64


@dataclasses.dataclass
class Told:
  """Counts: rows, samples used in them, prompts that have one; all samples by outcome."""

  prompts: int = 0
  served: int = 0
  samples: int = 0
  used: int = 0
  rows: int = 0
  tokens: int = 0
  outcomes: collections.Counter = dataclasses.field(
    default_factory=lambda: collections.Counter({o.value: 0 for o in Outcome})
  )

  def count(self, answers: Answers, rows: int, used: int) -> None:
    """One prompt more."""
    self.prompts, self.served = self.prompts + 1, self.served + (rows > 0)
    self.samples, self.used = self.samples + len(answers.samples), self.used + used
    self.rows += rows
    self.tokens += sum(len(s.tokens) - s.prompt for s in answers.samples)
    self.outcomes.update(s.grade.outcome.value for s in answers.samples)


def samples(
  maker: Maker, examples: Sequence[Example], out: pathlib.Path, keep: Keep, at_most: int | None
) -> Told:
  """Rejection sampling: a row a kept sample."""
  rows = lambda a: select.sample_rows(a, select.kept(a, keep, at_most))
  return _written(maker, examples, out, rows, 1)


def pairs(
  maker: Maker, examples: Sequence[Example], out: pathlib.Path, at_most: int | None
) -> Told:
  """Preference pairs: of each prompt as many as it has right and wrong samples."""
  return _written(maker, examples, out, lambda a: select.pair_rows(a, at_most), 2)


def labels(
  maker: Maker, examples: Sequence[Example], out: pathlib.Path, at_most: int | None
) -> Told:
  """Completions with 1 or 0."""
  return _written(maker, examples, out, lambda a: select.label_rows(a, at_most), 1)


def logits(
  maker: Maker,
  examples: Sequence[Example],
  out: pathlib.Path,
  keep: Keep,
  at_most: int | None,
  spec: Logits,
) -> Told:
  """The kept samples' tokens with the teacher's likeliest ones beside them."""
  longest = width(maker.tok, examples) + maker.asking.limit - 1
  length = spec.length or 2 * longest
  if length < longest:
    raise UserError(f'length {length}; a row may have {longest} inputs: give that at least')
  cfg = maker.engine.cfg
  if spec.k > maker.tok.vocab:
    raise UserError(f'k {spec.k}; the tokenizer has {maker.tok.vocab} ids: give that at most')
  about = shards.About(spec.teacher, fingerprint(maker.tok), spec.k, spec.temperature, length)
  told, kept = Told(), []
  for answers in _answers(maker, examples, told):
    chosen = select.kept(answers, keep, at_most)
    told.count(answers, len(chosen), len(chosen))
    kept += map(_row, chosen)
  _some(told)
  f = functools.partial(
    _top, cfg=cfg, k=spec.k, temperature=spec.temperature, vocab=maker.tok.vocab
  )
  program = Program('teacher', f, maker.announce)

  def teach(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return tuple(map(np.asarray, program(maker.params, batch.inputs)))

  shards.write(out, about, shards.taught(kept, about, spec.lines, teach))
  return told


def _row(s: Sampled) -> Tokens:
  """Its tokens; those of the completion count."""
  tokens = np.array(s.tokens, np.int32)
  return Tokens(tokens, (np.arange(len(tokens)) >= s.prompt).astype(np.float32))


def _top(
  params: Any, inputs: Inputs, cfg: ModelConfig, k: int, temperature: float, vocab: int
) -> Top:
  """Of the tokenizer's `vocab` ids: a student need not have those that only pad the model's."""
  out = Transformer(cfg).apply({'params': params}, inputs)
  return top(out.x_BLD, transformer.head(params, cfg)[:, :vocab], k, temperature)


def _written(
  maker: Maker,
  examples: Sequence[Example],
  out: pathlib.Path,
  rows: Callable[[Answers], list[Row]],
  of: int,
) -> Told:
  """Writes the rows that each prompt gives, each made of so many samples."""
  told = Told()
  with output.file(out) as file:
    for answers in _answers(maker, examples, told):
      made = rows(answers)
      file.writelines(files.json_text(row) + '\n' for row in made)
      told.count(answers, len(made), of * len(made))
    _some(told)
  return told


def _answers(maker: Maker, examples: Sequence[Example], told: Told) -> Iterator[Answers]:
  """All answers, one prompt after the other; tells how far it is after each batch."""
  m = maker
  for part in sample(m.engine, m.params, m.tok, examples, m.grade, m.asking, m.first):
    yield from part
    right = told.outcomes[Outcome.CORRECT.value] / told.samples
    m.narrate(told.prompts, rows=told.rows, accuracy=right)


def _some(told: Told) -> None:
  if not told.rows:
    raise UserError(
      f'none of {told.samples} samples makes a row ({dict(told.outcomes)}); ask a better model, '
      'or more often (--group), or keep all of them'
    )
