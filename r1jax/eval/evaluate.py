"""Accuracy on held-out problems: pass@1 as the mean over samples, greedy, and what was written.

Everything is seeded by the config and padded to fixed shapes: the same checkpoint gives the same
figures in any process on the same machine.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax

from r1jax.core import metrics
from r1jax.core.errors import UserError
from r1jax.engine.make import AnyEngine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rewards.outcome import Outcome
from r1jax.rollout import telemetry
from r1jax.rollout.collect import Grader, Limits, graded, prompt_rows, sample, texts
from r1jax.tasks.task import Example, Task
from r1jax.tokenizers.chat import open_thought
from r1jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """How to measure: `samples` completions of `problems` held-out ones, `batch` at a time.

  passes: what is measured beside the sampled accuracy. 'thoughtless' forces an empty thought in
  R1's tags, which means little for a model that was never taught them.
  """

  problems: int = 1024
  samples: int = 1
  batch: int = 256
  sampling: Sampling = Sampling()
  limits: Limits = Limits()
  seed: int = 0
  shown: int = 3
  passes: tuple[Literal['greedy', 'thoughtless'], ...] = ('greedy', 'thoughtless')

  def __post_init__(self):
    for name, least in (('problems', 1), ('samples', 1), ('batch', 1), ('shown', 0)):
      if getattr(self, name) < least:
        raise ValueError(f'{name}={getattr(self, name)}; expected {least} or more')
    if self.problems % self.batch:
      raise ValueError(f'problems={self.problems} must be a multiple of batch={self.batch}')


@dataclasses.dataclass(frozen=True)
class Scored:
  """Figures of one pass over the problems, and the first few transcripts."""

  figures: dict[str, float]
  correct: int
  samples: int
  shown: list[dict[str, str]]


def forced(tok: Tokenizer, thought: Literal['free', 'none']) -> list[int]:
  """Tokens put behind the prompt: nothing, or an empty thought and the answer's opening tag."""
  if thought == 'free':
    return []
  behind = (i for tag in ('</think>', '<answer>') for i in tok.encode_special(tag))
  return [*open_thought(tok), *behind]


def run(
  engine: AnyEngine,
  params: Any,
  tok: Tokenizer,
  examples: Sequence[Example],
  grade: Grader,
  spec: Evaluation,
  *,
  samples: int,
  sampling: Sampling,
  thought: Literal['free', 'none'] = 'free',
) -> Scored:
  """`samples` completions of each example, graded."""
  prefix = forced(tok, thought)
  key = jax.random.key(spec.seed)
  total: dict[str, metrics.Mean] = {}
  correct, shown = 0, []
  for start in range(0, len(examples), spec.batch):
    part = examples[start : start + spec.batch]
    _, _, made = sample(
      engine,
      params,
      tok,
      part,
      group=samples,
      key=key,
      first=start,
      sampling=sampling,
      limits=spec.limits,
      prefix=prefix,
    )
    written = texts(tok, made, prefix)
    asked = [e for e in part for _ in range(samples)]
    grades = graded(grade, asked, written, made)
    total = metrics.add(total, telemetry.measure(made, written, grades, asked, samples))
    correct += sum(g.outcome is Outcome.CORRECT for g in grades)
    shown += [
      {'question': e.question, 'completion': t, 'outcome': g.outcome.value}
      for e, t, g in list(zip(asked, written, grades))[::samples]
    ]
  return Scored(telemetry.finish(total), correct, len(examples) * samples, shown[: spec.shown])


def held_out(task: Task, tok: Tokenizer, spec: Evaluation) -> list[Example]:
  """The problems; too few, or a prompt that does not fit, is an error."""
  examples = task.examples('eval', 0, spec.problems)
  if len(examples) < spec.problems:
    raise UserError(
      f'task {task.name} has {len(examples)} held-out problems, '
      f'evaluation.problems asks for {spec.problems}'
    )
  thought = 'none' if 'thoughtless' in spec.passes else 'free'
  prompt_rows(tok, examples, spec.limits.prompt, forced(tok, thought))
  return examples


def evaluate(
  engine: AnyEngine, params: Any, tok: Tokenizer, task: Task, grade: Grader, spec: Evaluation
) -> dict[str, Any]:
  """Sampled accuracy, and what `passes` adds, on the same held-out problems."""
  examples = held_out(task, tok, spec)
  go = lambda **kw: run(engine, params, tok, examples, grade, spec, **kw)
  sampled = go(samples=spec.samples, sampling=spec.sampling)
  figures = sampled.figures | {
    'samples': sampled.samples,
    'correct': sampled.correct,
    'problems': len(examples),
    'temperature': spec.sampling.temperature,
    'shown': sampled.shown,
  }
  if 'greedy' in spec.passes:
    greedy = go(samples=1, sampling=Sampling(temperature=0.0))
    figures['greedy_accuracy'] = greedy.correct / greedy.samples
    figures['greedy_samples'] = greedy.samples
  if 'thoughtless' in spec.passes:
    bare = go(samples=spec.samples, sampling=spec.sampling, thought='none')
    figures['no_thought_accuracy'] = bare.correct / bare.samples
    figures['no_thought_length'] = bare.figures['length']
  return figures
