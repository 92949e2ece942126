"""Several graded completions of each prompt: what every kind of made data begins with.

Sample s of prompt i draws from fold(key, i, s): neither `batch` nor where a run began enters. The
last batch is filled up with its last prompt, so that one program serves all.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.core.errors import UserError
from r1jax.engine import buckets
from r1jax.engine.make import AnyEngine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.records.record import Records, texts
from r1jax.rollout import collect
from r1jax.rollout.collect import Grader, Limits
from r1jax.tasks.task import Example, Grade
from r1jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Asking:
  """`group` completions of each prompt, at most `limit` tokens long, `batch` prompts at a time."""

  group: int = 4
  batch: int = 32
  limit: int = 256
  sampling: Sampling = Sampling()
  seed: int = 0


class Sampled(NamedTuple):
  """One completion; `prompt` of the tokens are the prompt's; a cut one has no end token."""

  text: str
  tokens: list[int]
  prompt: int
  stopped: bool
  grade: Grade


class Answers(NamedTuple):
  """A prompt with its completions."""

  example: Example
  samples: list[Sampled]


def prompts(records: Records) -> list[Example]:
  """Rows as prompts: field question, and where a row has them answer (the gold) and system."""
  made = []
  for i in range(len(records)):
    optional = [f for f in ('answer', 'system') if records[i].get(f) is not None]
    question, *rest = texts(records, i, ('question', *optional))
    made.append(Example(records.where(i), question, **dict(zip(optional, rest))))
  return made


def distinct(examples: Sequence[Example]) -> list[Example]:
  """The first of those that ask the same: a task of few problems begins again after the last."""
  first: dict[tuple[str, str | None], Example] = {}
  for e in examples:
    first.setdefault((e.question, e.system), e)
  return list(first.values())


def width(tok: Tokenizer, examples: Sequence[Example]) -> int:
  """The width of the prompts: the longest one's, rounded up to a bucket."""
  return buckets.bucket(max(len(tok.prompt(e.question, e.system)) for e in examples))


def sample(
  engine: AnyEngine,
  params: Any,
  tok: Tokenizer,
  examples: Sequence[Example],
  grade: Grader,
  asking: Asking,
  first: int = 0,
) -> Iterator[list[Answers]]:
  """The examples' answers, a batch at a time; they are numbers first, first + 1, … to the keys."""
  limits, key = Limits(width(tok, examples), asking.limit), jax.random.key(asking.seed)
  for at in range(0, len(examples), asking.batch):
    part = list(examples[at : at + asking.batch])
    filled = part + [part[-1]] * (asking.batch - len(part))
    prompts_BP, lengths_B, made = collect.sample(
      engine, params, tok, filled,
      group=asking.group, key=key, first=first + at, sampling=asking.sampling, limits=limits,
    )  # fmt: skip
    asked = [e for e in part for _ in range(asking.group)]
    written = collect.texts(tok, made)[: len(asked)]
    grades = collect.graded(grade, asked, written, made)
    _check(grades)
    rows = zip(written, _tokens(prompts_BP, lengths_B, made), lengths_B, made.stopped_B, grades)
    sampled = [Sampled(t, ids, int(n), bool(end), g) for t, ids, n, end, g in rows]
    yield [
      Answers(e, sampled[i * asking.group : (i + 1) * asking.group]) for i, e in enumerate(part)
    ]


def _tokens(prompts_BP: np.ndarray, lengths_B: np.ndarray, made: Any) -> list[list[int]]:
  """Prompt and completion of every row, as they were seen and drawn."""
  tokens_BT, length_B = np.asarray(made.tokens_BT), np.asarray(made.length_B)
  rows = zip(prompts_BP, lengths_B, tokens_BT, length_B)
  return [[*p[:n].tolist(), *t[:m].tolist()] for p, n, t, m in rows]


def _check(grades: Sequence[Grade]) -> None:
  """A grader that reaches no verdict is the wrong one for these prompts."""
  if all('crash' in g.parts for g in grades):
    n = len(grades)
    raise UserError(
      f'the grader failed on {n} of {n} samples and judged none: it needs more of a problem than '
      'its text; take prompts of the task itself, or a task that grades by answer'
    )
