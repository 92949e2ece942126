"""A checkpoint made usable: parameters with the config, task and tokenizer of their training."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from r1jax.checkpoint.store import FOLDER, Store, resolve
from r1jax.core import config, prng
from r1jax.core.errors import UserError
from r1jax.engine import buckets, budget
from r1jax.engine import make as engines
from r1jax.engine.batch import Paged
from r1jax.engine.continuous import Continuous
from r1jax.engine.make import AnyEngine
from r1jax.engine.requests import Event, Failed, Request
from r1jax.engine.sampling import RequestSampling
from r1jax.eval import evaluate as evaluation
from r1jax.eval import harness as lm_eval
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rewards.pool import Pool
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits
from r1jax.tasks.make import make as make_task
from r1jax.tasks.task import Example
from r1jax.tokenizers.make import Public
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import parameters, provenance
from r1jax.train.experiment import Experiment, with_key_ids
from r1jax.train.progress import Progress
from r1jax.train.run import PUBLIC

CONVERTED = 'converted'
CONTEXT = 2048  # tokens, for lm_eval, of a model whose config.json does not lie beside it
GREEDY = RequestSampling(temperature=0.0)
LONGEST = 4096  # tokens, for lm_eval, unless asked for: what it costs grows with the square


@dataclasses.dataclass(frozen=True)
class Restored:
  """Parameters on one device, and everything that belongs to them."""

  exp: Experiment
  params: Any
  tok: Tokenizer
  engine: AnyEngine
  step: int
  stage: str


def load(
  path: str, overrides: Sequence[tuple[str, str]] = (), measure: Experiment | None = None
) -> Restored:
  """Reads a checkpoint's config, then its parameters alone (no optimizer state).

  measure: an experiment whose task, evaluation and verifier take the place of the checkpoint's.
  """
  directory, step = resolve(path)
  store = Store(directory)
  meta = store.meta(step)
  exp = described(directory, meta)
  if measure is not None:
    exp = dataclasses.replace(
      exp, task=measure.task, evaluation=measure.evaluation, verifier=measure.verifier
    )
  exp = with_key_ids(config.override_all(exp, overrides))
  params = parameters.weights(store, step, exp.model, None)
  tok = make_tokenizer(exp.tokenizer)
  progress = Progress('checkpoint', 0)
  stage = CONVERTED if meta['stage'] is None else exp.stages[meta['stage']].name
  writer = engines.make(exp.engine, exp.model, tok.stops, None, progress.compiling)
  return Restored(exp, params, tok, writer, step, stage)


def described(directory: epath.Path, meta: dict[str, Any]) -> Experiment:
  """The config of a checkpoint; a public model's tokenizer lies beside its checkpoints."""
  try:
    exp = config.from_dict(Experiment, meta['experiment'])
  except UserError as error:
    git = meta.get('provenance', {}).get('git')
    raise UserError(
      f'{directory}: {error}; the checkpoint was written by r1jax '
      f'{provenance.short(git) if git else "of an unknown revision"}, use that one'
    ) from error
  beside = directory.parent / PUBLIC if directory.name == FOLDER else directory / PUBLIC
  if isinstance(exp.tokenizer, Public) and beside.exists():
    exp = dataclasses.replace(exp, tokenizer=Public(str(beside)))
  return exp


def evaluate(model: Restored) -> dict[str, Any]:
  """The figures that training printed for this checkpoint, measured again."""
  exp = model.exp
  if exp.task is None:
    raise UserError(
      f'{exp.name} has no task to evaluate: name a config that has one by --config=FILE, or set '
      'one by --config.task.type=Gym, …'
    )
  task = make_task(exp.task)
  build = functools.partial(make_task, exp.task)
  with Pool(build, exp.verifier.workers, exp.verifier.seconds) as pool:
    figures = evaluation.evaluate(
      model.engine, model.params, model.tok, task, pool.map, exp.evaluation
    )
  return {'name': f'step {model.step}', 'stage': model.stage, 'step': model.step, **figures}


def harness(
  model: Restored,
  tasks: Sequence[str],
  folder: str | None = None,
  *,
  limit: int | None = None,
  shots: int | None = None,
  chat: bool = False,
  context: int | None = None,
) -> dict[str, dict[str, float]]:
  """Figures of lm_eval's tasks (eval/harness.py); `context` is at most the one published."""
  tokenizer, published = model.exp.tokenizer, None
  if isinstance(tokenizer, Public):  # what was published lies beside it
    beside = epath.Path(tokenizer.path) / 'config.json'
    said = json.loads(beside.read_text()) if beside.exists() else {}
    published = said.get('max_position_embeddings')
  if context is None:
    context = min(published or CONTEXT, LONGEST)
  if published is not None and context > published:
    raise UserError(
      f'--lm_eval_context={context}: the model was published for {published} tokens; give that '
      'at most'
    )
  progress = Progress('lm_eval', 0)
  lm = lm_eval.language_model(
    model.params, model.exp.model, model.tok, model.engine,
    context=context, announce=progress.compiling,
  )  # fmt: skip
  return lm_eval.run(lm, tasks, folder, limit=limit, shots=shots, chat=chat)


def generate(
  model: Restored,
  prompts: Sequence[str],
  samples: int,
  sampling: Sampling,
  limit: int,
  seed: int,
  system: str | None = None,
) -> list[list[str]]:
  """`samples` completions of each prompt, through the chat template.

  Widths are rounded up to buckets, so that not every prompt compiles a program of its own.
  """
  examples = [Example(f'prompt {i}', question=p, system=system) for i, p in enumerate(prompts)]
  width = buckets.bucket(max(len(model.tok.prompt(p, system)) for p in prompts))
  _, _, made = collect.sample(
    model.engine, model.params, model.tok, examples,
    group=samples, key=jax.random.key(seed), first=0, sampling=sampling,
    limits=Limits(width, limit),
  )  # fmt: skip
  written = collect.texts(model.tok, made)
  return [written[i * samples : (i + 1) * samples] for i in range(len(prompts))]


def paged(exp: Experiment) -> Paged:
  """The sizes of its engine, or the usual ones."""
  return exp.engine if isinstance(exp.engine, Paged) else Paged()


def engine(model: Restored, longest: int, slots: int | None = None) -> Continuous:
  """Continuous batching by the restored weights, for texts of at most `longest` tokens."""
  spec = paged(model.exp)
  spec = dataclasses.replace(spec, slots=slots or spec.slots)
  made = Continuous(
    model.exp.model, model.tok.stops, spec.config(longest), Progress('engine', 0).compiling,
    spec.stored, marks=budget.marks(model.tok), drafting=spec.drafting,
    decode=functools.partial(collect.text, model.tok), routes=False,
  )  # fmt: skip
  made.load(model.params)
  return made


def requests(
  model: Restored,
  prompts: Sequence[str],
  limit: int,
  *,
  samples: int = 1,
  sampling: RequestSampling = GREEDY,
  seed: int = 0,
  system: str | None = None,
  **fields: Any,
) -> list[Request]:
  """`samples` requests a prompt, through the chat template; further fields are Request's."""
  ids = [tuple(model.tok.prompt(p, system)) for p in prompts]
  number, each = np.arange(len(prompts)).repeat(samples), np.tile(np.arange(samples), len(prompts))
  keys = prng.fold_rows(jax.random.key(seed), number, each)
  seeds = np.asarray(jax.random.key_data(keys)).tolist()
  return [
    Request(ids[i], limit, tuple(seed), sampling, **fields)
    for i, seed in zip(number, seeds, strict=True)
  ]


def stream(model: Restored, asked: Sequence[Request]) -> Iterator[Event]:
  """Completions of the requests, pieces of streamed ones too; UserError for a bad one."""
  longest = max(len(r.prompt) + r.limit for r in asked)
  rows = min(len(asked), paged(model.exp).slots)
  for event in engine(model, longest, rows).stream(asked):
    if isinstance(event, Failed):
      raise UserError(event.error)
    yield event
