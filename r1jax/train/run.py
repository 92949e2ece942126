"""What a run holds beside its state: task, engine, grader, files, clocks.

Built once, before any long work, by every process alike; process 0 writes and talks.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config, files
from r1jax.core.errors import UserError
from r1jax.data.mix import Mixture
from r1jax.data.stream import Shape, Stream
from r1jax.engine.engine import Engine
from r1jax.eval import evaluate
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.rewards.pool import Pool
from r1jax.rollout.collect import Grader
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place, processes
from r1jax.tasks.make import make as make_task
from r1jax.tasks.task import Task
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import points, provenance, supervised
from r1jax.train.experiment import Experiment
from r1jax.train.point import Point
from r1jax.train.profile import Profiler, Window
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.stop import Stop
from r1jax.train.supervised import Pretrain
from r1jax.train.telemetry import Mute, Timers, Writer

EVALUATIONS = 'evaluations.json'


@dataclasses.dataclass
class Run:
  """One run's tools. `progress` is the stage that is being told about, on process 0's terminal."""

  exp: Experiment
  workdir: pathlib.Path
  model: Transformer
  task: Task | None
  tok: Tokenizer
  mesh: jax.sharding.Mesh | None
  engine: Engine
  grade: Grader
  store: Store
  writer: Writer | Mute
  timers: Timers
  terminal: TextIO
  progress: Progress
  stop: Stop
  profiler: Profiler
  record: dict[str, Any]
  evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  saved: int | None = None  # the newest update in the store, or on its way there

  def announce(self, what: str) -> contextlib.AbstractContextManager:
    """Says on the terminal that `what` compiles, and books the time."""
    stack = contextlib.ExitStack()
    stack.enter_context(self.progress.compiling(what))
    stack.enter_context(self.timers('compile'))
    return stack

  def telling(self, stage: str, steps: int, start: int) -> Progress:
    """A progress line for a stage."""
    self.progress = Progress(stage, steps, self.terminal, start=start)
    return self.progress

  def save(self, point: Point, block: bool = False) -> None:
    """Checkpoints what going on needs; nothing where this update is saved already."""
    update = int(point.state.step)
    with self.timers('checkpoint'):
      if update != self.saved:
        tree, meta = points.saved(self.exp, self.mesh, point)
        self.store.save(update, tree, meta | {'provenance': self.record}, block)
        self.saved = update
      elif block:
        self.store.wait()

  def keep_evaluations(self, found: list[dict[str, Any]]) -> None:
    """Puts the evaluations so far beside the checkpoints."""
    self.evaluations = found
    if processes.leader():
      files.write_json(self.workdir / EVALUATIONS, found)


def check_same(exp: Experiment, workdir: pathlib.Path, store: Store) -> None:
  """A run goes on under the config that it was started with, or not at all.

  Where and how it runs may change: mesh, checkpoints, number of graders.
  """
  if store.latest() is None:
    return
  saved = config.from_dict(Experiment, store.meta()['experiment'])
  saved = dataclasses.replace(
    saved, mesh=exp.mesh, checkpoint=exp.checkpoint, verifier=exp.verifier
  )
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


def check(
  exp: Experiment, tok: Tokenizer, task: Task | None, mesh: jax.sharding.Mesh | None
) -> str:
  """What only shows when parts meet, said before any long work; gives the data's fingerprint."""
  if tok.vocab > exp.model.vocab:
    raise UserError(
      f'the tokenizer has {tok.vocab} ids, model.vocab is {exp.model.vocab}: raise model.vocab'
    )
  if task is not None:
    evaluate.held_out(task, tok, exp.evaluation)
    place.check_rows(mesh, exp.evaluation.batch)
  prints = []
  for stage in exp.stages:
    if isinstance(stage, RL):
      place.check_rows(mesh, stage.prompts * stage.algorithm.group // stage.minibatches)
      continue
    for segment in supervised.segments(stage, exp.model):
      place.check_rows(mesh, segment.shape.lines // segment.microbatches)
      prints.append(check_data(stage.data, segment.shape, exp, tok, task, mesh))
    if segment.model != exp.model:
      raise UserError(
        f'stage {stage.name}: the last phase extends the context by {stage.phases[-1].yarn}, '
        'config.model by another yarn; what follows uses the model, so give both the same'
      )
    if isinstance(stage, Pretrain) and stage.held_out:
      prints.append(check_data(stage.held_out, segment.shape, exp, tok, task, mesh))
  return ' '.join(prints)


def check_data(
  data: Mixture,
  shape: Shape,
  exp: Experiment,
  tok: Tokenizer,
  task: Task | None,
  mesh: jax.sharding.Mesh | None,
) -> str:
  """Reads the first batch of a stream; gives the fingerprint of what it draws from."""
  sources = supervised.opened(data, shape, task, tok)
  next(iter(Stream(sources, data, shape, exp.seed, place.lines_of(mesh, shape.lines))))
  return ' '.join(s.fingerprint() for s in sources)


def agreed(exp: Experiment, record: dict[str, Any], data: str) -> None:
  """Every process runs the same config and code on the same data, or all stop with one line."""
  digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:12]
  git = record['git']
  processes.agree({
    'config': digest(config.to_json(exp)),
    'code revision': provenance.short(git) if git else 'none',
    'versions': ' '.join(f'{name} {v}' for name, v in record['versions'].items()),
    'data': digest(data),
  })  # fmt: skip


def shared(grade: Grader) -> Grader:
  """Every process grades its part of the calls; all know all grades."""

  def split(calls: Any) -> list[Grade]:
    mine = grade(list(calls)[processes.index() :: processes.count()])
    told = processes.exchange([(g.outcome.value, g.reward, g.parts) for g in mine])
    grades: list[Any] = [None] * len(calls)
    for i, part in enumerate(told):
      grades[i :: len(told)] = [Grade(Outcome(o), reward, parts) for o, reward, parts in part]
    return grades

  return split if processes.count() > 1 else grade


def evaluations(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """What a workdir's stages have reached so far."""
  path = workdir / EVALUATIONS
  return json.loads(path.read_text('utf-8')) if path.exists() else []


@contextlib.contextmanager
def open_run(
  exp: Experiment, workdir: pathlib.Path, profile: Window | None = None
) -> Iterator[Run]:
  """Builds everything, writes config and versions beside the results, closes all at the end."""
  with contextlib.ExitStack() as stack:
    run, data = processes.together(lambda: build(exp, workdir, profile, stack))
    agreed(exp, run.record, data)
    if processes.leader():
      provenance.write(workdir, config.to_json(exp), run.record)
      run.writer = stack.enter_context(Writer(workdir))
    yield run


def build(
  exp: Experiment, workdir: pathlib.Path, profile: Window | None, stack: contextlib.ExitStack
) -> tuple[Run, str]:
  """The run, checked, and the fingerprint of its data; nothing is written."""
  tok = make_tokenizer(exp.tokenizer)
  task = None if exp.task is None else make_task(exp.task)
  mesh = meshes.make(exp.mesh)
  mesh = mesh if mesh.size > 1 else None
  data = check(exp, tok, task, mesh)
  every = exp.checkpoint
  store = stack.enter_context(Store(workdir / FOLDER, every.keep, every.keep_every))
  check_same(exp, workdir, store)
  pool = None
  if task is not None:
    make = functools.partial(make_task, exp.task)
    pool = stack.enter_context(Pool(make, exp.verifier.workers, exp.verifier.seconds))
  terminal = (
    sys.stderr if processes.leader() else stack.enter_context(open(os.devnull, 'w'))  # noqa: SIM115
  )
  run = Run(
    exp=exp,
    workdir=workdir,
    model=Transformer(exp.model),
    task=task,
    tok=tok,
    mesh=mesh,
    engine=None,
    grade=shared(pool.map) if pool else None,
    store=store,
    writer=Mute(),
    timers=Timers(),
    terminal=terminal,
    progress=Progress('start', 0, terminal),
    stop=None,
    profiler=stack.enter_context(Profiler(profile if processes.leader() else None, workdir)),
    record=provenance.record(),
  )
  run.stop = stack.enter_context(Stop(every.deadline, lambda text: run.progress.note(text)))
  run.engine = Engine(exp.model, tok.stops, mesh, run.announce)
  if mesh is not None:
    stack.enter_context(jax.set_mesh(mesh))
  return run, data


def inputs(exp: Experiment) -> Any:
  """The smallest inputs of the model, for init."""
  return dummy_inputs(exp.model)
