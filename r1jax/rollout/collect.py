"""Samples completions of examples, several each, and grades them.

Sample s of example i draws from fold(key, i, s): neither the batch nor its order enters. Prompts
are padded to one static width and completions to one limit, so that a run compiles each program
once. Trajectories hold token ids; text is made from them for the grader and never turned back into
tokens.

Groups may be dropped and others sampled in their place (`take`, `join`); what a step holds at once
are the groups that it keeps and one rollout.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.core import prng
from r1jax.core.errors import UserError
from r1jax.engine.generate import Samples
from r1jax.engine.make import AnyEngine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout.grading import Grader
from r1jax.sharding import processes
from r1jax.tasks.file import GroupTask
from r1jax.tasks.task import Example, Grade, Outcome, Task
from r1jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Limits:
  """Static widths: tokens of a prompt, tokens of a completion."""

  prompt: int = 64
  completion: int = 256


class Trajectories(NamedTuple):
  """One row a sample; rows of one prompt lie together."""

  prompts_BP: np.ndarray
  prompt_lengths_B: np.ndarray
  samples: Samples
  texts: list[str]
  grades: list[Grade]


def prompt_rows(
  tok: Tokenizer, examples: Sequence[Example], width: int, prefix: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
  """Right-padded prompts and their lengths; `prefix` is forced behind each prompt."""
  rows = [[*tok.prompt(e.question, e.system), *prefix] for e in examples]
  longest = max(map(len, rows))
  if longest > width:
    example = examples[[len(r) for r in rows].index(longest)]
    raise UserError(
      f'the prompt of {example.id} has {longest} tokens, the limit is {width}: raise limits.prompt'
    )
  lengths_B = np.array([len(r) for r in rows], np.int32)
  prompts_BP = np.full((len(rows), width), tok.pad, np.int32)
  for row, ids in zip(prompts_BP, rows):
    row[: len(ids)] = ids
  return prompts_BP, lengths_B


def sample(
  engine: AnyEngine,
  params: Any,
  tok: Tokenizer,
  examples: Sequence[Example],
  *,
  group: int,
  key: jax.Array,
  first: int,
  sampling: Sampling,
  limits: Limits,
  prefix: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray, Samples]:
  """`group` completions of each example; the examples are numbers first, first+1, … to the keys.

  Returns the prompts and their lengths, a row a sample, and the samples on the host.
  """
  prompts_BP, lengths_B = prompt_rows(tok, examples, limits.prompt, prefix)
  prompts_BP, lengths_B = prompts_BP.repeat(group, 0), lengths_B.repeat(group)
  number_B = np.arange(first, first + len(examples)).repeat(group)
  key_B = prng.fold_rows(key, number_B, np.tile(np.arange(group), len(examples)))
  samples = engine(params, prompts_BP, lengths_B, key_B, sampling, limits.completion)
  return prompts_BP, lengths_B, processes.fetch(samples)


def texts(tok: Tokenizer, samples: Samples, prefix: Sequence[int] = ()) -> list[str]:
  """Completions as text; in front what the prompt opened of them, and a forced prefix.

  What lies behind a row's length is not read.
  """
  tokens_BT, length_B = np.asarray(samples.tokens_BT), np.asarray(samples.length_B)
  rows = ([*prefix, *row[:n].tolist()] for row, n in zip(tokens_BT, length_B))
  return [tok.opened + text(tok, ids) for ids in rows]


def text(tok: Tokenizer, ids: Iterable[int]) -> str:
  """Text of tokens; ids that only the model has (a vocabulary padded for sharding) are U+FFFD."""
  unknown = tok.encode('\N{REPLACEMENT CHARACTER}')
  return tok.decode(j for i in ids for j in ([i] if i < tok.vocab else unknown))


def graded(
  grade: Grader, asked: Sequence[Example], written: Sequence[str], samples: Samples
) -> list[Grade]:
  """The grades of completions."""
  return answered(grade(list(zip(asked, written, strict=True))), samples)


def answered(grades: Sequence[Grade], samples: Samples) -> list[Grade]:
  """A completion that the limit cut has no answer, unless something closed it: the last number that
  it happened to reach is not what it would have said.
  """
  cut = lambda g: Grade(Outcome.UNPARSEABLE, 0.0, dict.fromkeys(g.parts, 0.0))
  return [cut(g) if g.open and not end else g for g, end in zip(grades, samples.stopped_B.tolist())]


def regraded(
  task: Task, grades: list[Grade], written: Sequence[str], group: int, lengths: Sequence[int]
) -> list[Grade]:
  """The grades with the task's own group parts, if it has any; lengths are tokens."""
  if not isinstance(task, GroupTask):
    return grades
  new = []
  for i in range(0, len(grades), group):
    here = slice(i, i + group)
    new += task.regrade(grades[here], written[here], lengths[here])
  return new


def take(t: Trajectories, index: np.ndarray) -> Trajectories:
  """The rows of these numbers."""
  pick = lambda items: [items[i] for i in index]
  samples = _by_rows(lambda x, axis: np.take(x, index, axis), t.samples)
  rows = t.prompts_BP[index], t.prompt_lengths_B[index]
  return Trajectories(*rows, samples, pick(t.texts), pick(t.grades))


def join(a: Trajectories, b: Trajectories) -> Trajectories:
  """The rows of a, then those of b."""
  both = lambda x, y: np.concatenate([x, y])
  return Trajectories(
    both(a.prompts_BP, b.prompts_BP),
    both(a.prompt_lengths_B, b.prompt_lengths_B),
    _by_rows(lambda x, y, axis: np.concatenate([x, y], axis), a.samples, b.samples),
    a.texts + b.texts,
    a.grades + b.grades,
  )


def count(t: Trajectories) -> int:
  """Tokens of prompts and completions."""
  return int(t.prompt_lengths_B.sum() + t.samples.length_B.sum())


def _by_rows(f: Callable[..., np.ndarray], *samples: Samples) -> Samples:
  """f of each leaf and the axis of its rows; routes have layers in front."""
  routes = jax.tree.map(lambda *x: f(*x, 1), *(s.routes for s in samples))
  rest = (s._replace(routes=()) for s in samples)
  return jax.tree.map(lambda *x: f(*x, 0), *rest)._replace(routes=routes)
