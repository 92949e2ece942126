"""What is compared before a run begins: config against machine, workdir and the other processes."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax

from r1jax.algos import lora
from r1jax.checkpoint.store import Damaged, Store, resolve
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.data.stream import Stream
from r1jax.engine import make as engines
from r1jax.eval import evaluate
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.tasks.task import Task
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import forward, preferences, provenance, supervised
from r1jax.train.distillation import Distillation
from r1jax.train.experiment import Experiment
from r1jax.train.preferences import Preference
from r1jax.train.rl import RL
from r1jax.train.supervised import SFT, Pretrain


def same(exp: Experiment, workdir: pathlib.Path, store: Store, data: str) -> None:
  """A run goes on under the config that it was started with, or not at all.

  Where and how it runs may change: mesh, engine, checkpoints, number of graders.
  """
  meta = newest_meta(store)
  if meta is None:
    return
  saved = config.from_dict(Experiment, meta['experiment'])
  saved = dataclasses.replace(
    saved, mesh=exp.mesh, engine=exp.engine, checkpoint=exp.checkpoint, verifier=exp.verifier
  )
  if saved != exp:
    raise UserError(
      f'{workdir} holds a run with another config ({config.first_difference(saved, exp)}); '
      'use another --workdir, or the config that it was started with (config.json there)'
    )
  there = meta['provenance'].get('data', data)
  if there != data:
    raise UserError(
      f'{workdir} holds a run on other data (fingerprint {there} there, {data} here); put back '
      'what it was started with, or go on in another --workdir with --config.init'
    )


def newest_meta(store: Store) -> dict[str, Any] | None:
  """What the newest readable checkpoint says; a damaged one is passed over here as in resuming."""
  for step in reversed(store.steps()):
    with contextlib.suppress(Damaged):
      return store.meta(step)
  return None


def check(
  exp: Experiment,
  tok: Tokenizer,
  task: Task | None,
  mesh: jax.sharding.Mesh | None,
  opened: dict[Any, Any],
) -> str:
  """What only shows when parts meet, said before any long work; gives the data's fingerprint.

  opened: takes what each mixture draws from, by length of a line, and what preferences are learned
  from, by their stage's name.
  """
  if tok.vocab > exp.model.vocab:
    raise UserError(
      f'the tokenizer has {tok.vocab} ids, model.vocab is {exp.model.vocab}: raise model.vocab'
    )
  engines.check(exp.engine, exp.model)
  if task is not None:
    evaluate.held_out(task, tok, exp.evaluation)
    place.check_rows(mesh, exp.evaluation.batch)
  if exp.init is not None:
    resolve(exp.init)
  if exp.lora:
    lora.boxed(place.abstract(Transformer(exp.model), dummy_inputs(exp.model)), exp.lora)
  prints: list[str] = []
  for stage in exp.stages:
    match stage:
      case RL():
        group = stage.algorithm.group
        place.check_rows(mesh, stage.prompts // stage.waves * group)
        update = stage.prompts * group // stage.minibatches
        place.check_rows(mesh, update // stage.microbatches)
      case Preference():
        place.check_rows(mesh, stage.rows // stage.microbatches)
        opened[stage.name] = preferences.opened(stage, task, tok)
        prints += [docs.fingerprint for docs in opened[stage.name] if docs]
      case Distillation():
        place.check_rows(mesh, stage.lines // stage.microbatches)
        from r1jax.train import teaching  # reads checkpoints by what imports this

        teaching.check(stage, exp.model, tok)
        prints += teaching.fingerprints(stage, task, tok)
      case _:
        prints += supervised_data(exp, stage, tok, task, mesh, opened)
  return digest(' '.join(prints))


def supervised_data(
  exp: Experiment,
  stage: SFT | Pretrain,
  tok: Tokenizer,
  task: Task | None,
  mesh: jax.sharding.Mesh | None,
  opened: dict[Any, Any],
) -> list[str]:
  """Opens what a stage reads and makes its first batch; gives the fingerprints."""
  found = []
  for segment in supervised.segments(stage, exp.model):
    place.check_rows(mesh, segment.shape.lines // segment.microbatches)
  if segment.model != forward.staged(exp.model, segment.auxiliary):
    raise UserError(
      f'stage {stage.name}: the last phase has yarn={stage.phases[-1].yarn} and '
      f'window={stage.phases[-1].window}, config.model others; what follows uses the model, so '
      'give both the same (window=None: that of the model)'
    )
  for data, shape in supervised.mixtures(stage, exp.model):
    if (data, shape.length) not in opened:
      opened[data, shape.length] = supervised.opened(data, shape.length, task, tok)
    mine = place.lines_of(mesh, shape.lines)
    next(iter(Stream(opened[data, shape.length], data, shape, exp.seed, mine)))
    found += [s.fingerprint() for s in opened[data, shape.length]]
  return found


def facts(
  exp: Experiment, record: dict[str, Any], steps: list[int], evaluations: list[dict[str, Any]]
) -> dict[str, str]:
  """What every process must have alike: config and code, data, what there is to go on from."""
  git = record['git']
  return {
    'config': digest(config.to_json(exp)),
    'code revision': provenance.short(git) if git else 'none',
    'versions': ' '.join(f'{name} {v}' for name, v in record['versions'].items()),
    'data': record['data'],
    'list of checkpoints': str(steps),
    'evaluations.json': digest(json.dumps(evaluations)),
  }


def digest(text: str) -> str:
  """Twelve hex digits."""
  return hashlib.sha256(text.encode()).hexdigest()[:12]
