"""A checkpoint made usable: parameters with the config, task and tokenizer of their training."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from r1jax.checkpoint.store import Store, resolve
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.engine.engine import Engine
from r1jax.eval import evaluate as evaluation
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rewards.pool import Pool
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits
from r1jax.sharding import place
from r1jax.tasks.make import make as make_task
from r1jax.tasks.task import Example
from r1jax.tokenizers.chat import render_prompt
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train.experiment import Experiment
from r1jax.train.progress import Progress


@dataclasses.dataclass(frozen=True)
class Restored:
  """Parameters on one device, and everything that belongs to them."""

  exp: Experiment
  params: Any
  tok: Tokenizer
  engine: Engine
  step: int
  stage: str


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Restored:
  """Reads a checkpoint's config, then its parameters alone (no optimizer state)."""
  directory, step = resolve(path)
  store = Store(directory)
  meta = store.meta(step)
  exp = config.override_all(config.from_dict(Experiment, meta['experiment']), overrides)
  shapes = place.templates(None, place.abstract(Transformer(exp.model), dummy_inputs(exp.model)))
  params = store.restore({'params': shapes}, step, partial=True)['params']
  tok = make_tokenizer(exp.tokenizer)
  progress = Progress('checkpoint', 0)
  stage = exp.stages[meta['stage']].name
  return Restored(
    exp, params, tok, Engine(exp.model, tok.stops, None, progress.compiling), step, stage
  )


def evaluate(model: Restored) -> dict[str, Any]:
  """The figures that training printed for this checkpoint, measured again."""
  exp = model.exp
  if exp.task is None:
    raise UserError(f'{exp.name} has no task to evaluate: set one by --config.task.type=Gym, …')
  task = make_task(exp.task)
  build = functools.partial(make_task, exp.task)
  with Pool(build, exp.verifier.workers, exp.verifier.seconds) as pool:
    figures = evaluation.evaluate(
      model.engine, model.params, model.tok, task, pool.map, exp.evaluation
    )
  return {'name': f'step {model.step}', 'stage': model.stage, 'step': model.step, **figures}


def generate(
  model: Restored, prompts: Sequence[str], samples: int, sampling: Sampling, limit: int, seed: int
) -> list[list[str]]:
  """`samples` completions of each prompt, through the chat template."""
  examples = [Example(id=f'prompt {i}', question=p) for i, p in enumerate(prompts)]
  width = max(len(render_prompt(model.tok, p)) for p in prompts)
  _, _, made = collect.sample(
    model.engine, model.params, model.tok, examples,
    group=samples, key=jax.random.key(seed), first=0, sampling=sampling,
    limits=Limits(width, limit),
  )  # fmt: skip
  written = collect.texts(model.tok, made)
  return [written[i * samples : (i + 1) * samples] for i in range(len(prompts))]
