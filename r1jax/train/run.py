"""What a run holds beside its state: task, engine, grader, files, clocks.

Built once, before any long work.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.engine.engine import Engine
from r1jax.eval import evaluate
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rewards.pool import Pool
from r1jax.rollout.collect import Grader
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.tasks.make import make as make_task
from r1jax.tasks.task import Task
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import provenance, supervised
from r1jax.train.experiment import Experiment
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.state import State
from r1jax.train.supervised import SFT
from r1jax.train.telemetry import Timers, Writer


@dataclasses.dataclass
class Run:
  """One run's tools. `progress` is the stage that is being told about."""

  exp: Experiment
  workdir: pathlib.Path
  model: Transformer
  task: Task
  tok: Tokenizer
  mesh: jax.sharding.Mesh | None
  engine: Engine
  grade: Grader
  store: Store
  writer: Writer
  timers: Timers
  progress: Progress

  def announce(self, what: str) -> contextlib.AbstractContextManager:
    """Says on the terminal that `what` compiles, and books the time."""
    stack = contextlib.ExitStack()
    stack.enter_context(self.progress.compiling(what))
    stack.enter_context(self.timers('compile'))
    return stack

  def save(self, state: State, stage: int, step: int, evaluations: list[dict[str, Any]]) -> None:
    """Checkpoints the state with what going on needs: config, stage, step in it, figures so far."""
    meta = {
      'experiment': json.loads(config.to_json(self.exp)),
      'stage': stage,
      'step': step,
      'evaluations': evaluations,
      'provenance': provenance.record(),
    }
    with self.timers('checkpoint'):
      self.store.save(int(state.step), state, meta)

  def evaluate(self, params: Any, name: str, step: int) -> dict[str, Any]:
    """Held-out figures under the run's evaluation."""
    self.progress.note(f'evaluating {name}')
    with self.timers('evaluate'):
      figures = evaluate.evaluate(
        self.engine, params, self.tok, self.task, self.grade, self.exp.evaluation
      )
    return {'name': name, 'step': step, **figures}


def check(exp: Experiment, tok: Tokenizer, task: Task, mesh: jax.sharding.Mesh | None) -> None:
  """What only shows when parts meet, said before any long work."""
  if tok.vocab > exp.model.vocab:
    raise UserError(
      f'the tokenizer has {tok.vocab} ids, model.vocab is {exp.model.vocab}: raise model.vocab'
    )
  evaluate.held_out(task, tok, exp.evaluation)
  place.check_rows(mesh, exp.evaluation.batch)
  for stage in exp.stages:
    match stage:
      case SFT():
        supervised.batches(stage, task, tok, len(exp.model.mtp), exp.seed)
        place.check_rows(mesh, stage.lines)
      case RL():
        place.check_rows(mesh, stage.prompts * stage.algorithm.group // stage.minibatches)


def check_same(exp: Experiment, workdir: pathlib.Path, store: Store) -> None:
  """A run goes on under the config that it was started with, or not at all."""
  if store.latest() is None:
    return
  saved = config.from_dict(Experiment, store.meta()['experiment'])
  if saved != exp:
    raise UserError(
      f'{workdir} holds a run with another config ({first_difference(saved, exp)}); '
      'use another --workdir, or the config that it was started with (config.json there)'
    )


def first_difference(a: Any, b: Any, path: str = 'config') -> str:
  """The first field in which two configs differ, with both values."""
  if dataclasses.is_dataclass(a) and type(a) is type(b):
    for f in dataclasses.fields(a):
      if getattr(a, f.name) != getattr(b, f.name):
        return first_difference(getattr(a, f.name), getattr(b, f.name), f'{path}.{f.name}')
  if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
    i = next((i for i in range(len(a)) if a[i] != b[i]), None)
    if i is not None:
      return first_difference(a[i], b[i], f'{path}[{i}]')
  return f'{path}: {a} there, {b} here'


@contextlib.contextmanager
def open_run(exp: Experiment, workdir: pathlib.Path) -> Iterator[Run]:
  """Builds everything, writes config and versions beside the results, closes all at the end."""
  tok = make_tokenizer(exp.tokenizer)
  task = make_task(exp.task)
  mesh = meshes.make(exp.mesh)
  mesh = mesh if mesh.size > 1 else None
  check(exp, tok, task, mesh)
  store = Store(workdir / FOLDER, exp.checkpoint.keep)
  check_same(exp, workdir, store)
  provenance.write(workdir, config.to_json(exp))
  with (
    Pool(
      functools.partial(make_task, exp.task), exp.verifier.workers, exp.verifier.seconds
    ) as pool,
    Writer(workdir) as writer,
    jax.set_mesh(mesh) if mesh else contextlib.nullcontext(),
  ):
    run = Run(
      exp=exp,
      workdir=workdir,
      model=Transformer(exp.model),
      task=task,
      tok=tok,
      mesh=mesh,
      engine=None,
      grade=pool.map,
      store=store,
      writer=writer,
      timers=Timers(),
      progress=Progress('start', 0),
    )
    run.engine = Engine(exp.model, tok.stops, mesh, run.announce)
    yield run


def inputs(exp: Experiment) -> Any:
  """The smallest inputs of the model, for init."""
  return dummy_inputs(exp.model)
