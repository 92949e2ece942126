"""Samples completions of examples, several each, and grades them.

Sample s of example i draws from fold(key, i, s): neither the batch nor its order enters. Prompts
are padded to one static width and completions to one limit, so that a run compiles each program
once. Trajectories hold token ids; text is made from them for the grader and never turned back into
tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.core import prng
from r1jax.core.errors import UserError
from r1jax.core.text import self_checks, spans
from r1jax.engine.engine import Engine
from r1jax.engine.generate import Samples
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.sharding import processes
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers.tokenizer import Tokenizer

Grader = Callable[[Sequence[tuple[Example, str]]], list[Grade]]


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
  engine: Engine,
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

  What lies behind a row's length is not read. Ids that only the model has (a vocabulary padded for
  sharding) read as U+FFFD.
  """
  tokens_BT, length_B = np.asarray(samples.tokens_BT), np.asarray(samples.length_B)
  unknown = tok.encode('\N{REPLACEMENT CHARACTER}')
  known = lambda ids: (j for i in ids for j in ([i] if i < tok.vocab else unknown))
  rows = ([*prefix, *known(row[:n].tolist())] for row, n in zip(tokens_BT, length_B))
  return [tok.opened + tok.decode(ids) for ids in rows]


def graded(
  grade: Grader, asked: Sequence[Example], written: Sequence[str], samples: Samples
) -> list[Grade]:
  """Grades; a completion that the limit cut has no answer, unless something closed it: the last
  number that it happened to reach is not what it would have said.
  """
  grades = grade(list(zip(asked, written, strict=True)))
  cut = lambda g: Grade(Outcome.UNPARSEABLE, 0.0, dict.fromkeys(g.parts, 0.0))
  return [cut(g) if g.open and not end else g for g, end in zip(grades, samples.stopped_B.tolist())]


def telemetry(samples: Samples, texts: Sequence[str], grades: Sequence[Grade]) -> dict[str, float]:
  """Means over samples: reward, its parts, outcomes, length in tokens, self-checks, form."""
  outcome = {o: float(np.mean([g.outcome is o for g in grades])) for o in Outcome}
  thoughts = [spans(t) for t in texts]
  names = sorted({name for g in grades for name in g.parts})  # a timeout has a part of its own
  parts = {
    f'part/{name}': float(np.mean([g.parts.get(name, 0.0) for g in grades])) for name in names
  }
  return {
    'reward': float(np.mean([g.reward for g in grades])),
    'accuracy': outcome[Outcome.CORRECT],
    'unparseable': outcome[Outcome.UNPARSEABLE],
    'timeout': outcome[Outcome.TIMEOUT],
    'length': float(np.mean(samples.length_B)),
    'truncated': float(1 - np.mean(samples.stopped_B)),
    'self_checks': float(np.mean([self_checks(s.think or '') for s in thoughts])),
    'well_formed': float(np.mean([s.well_formed for s in thoughts])),
    **parts,
  }
