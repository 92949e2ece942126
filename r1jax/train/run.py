"""What a run holds beside its state: task, engine, grader, files, clocks.

Built once, before any long work, by every process alike; process 0 writes and talks.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config, files
from r1jax.data.mix import Mixture
from r1jax.data.sources import Source
from r1jax.engine import make as engines
from r1jax.engine.make import AnyEngine
from r1jax.model.transformer import Transformer
from r1jax.rewards.pool import Pool
from r1jax.rollout.grading import Grading
from r1jax.sharding import mesh as meshes
from r1jax.sharding import processes
from r1jax.tasks.make import make as make_task
from r1jax.tasks.task import Task
from r1jax.tokenizers import folder
from r1jax.tokenizers.make import Public
from r1jax.tokenizers.make import make as make_tokenizer
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import checks, points, provenance, supervised
from r1jax.train.experiment import Experiment
from r1jax.train.point import Point
from r1jax.train.profile import Profiler, Window
from r1jax.train.progress import Progress
from r1jax.train.rl import RL
from r1jax.train.stop import Stop
from r1jax.train.telemetry import Mute, Timers, Writer

EVALUATIONS = 'evaluations.json'
PUBLIC = 'public'  # of a workdir: the files that were published beside the weights


@dataclasses.dataclass
class Run:
  """One run's tools. `progress` is the stage that is being told about, on process 0's terminal."""

  exp: Experiment
  workdir: pathlib.Path
  model: Transformer
  task: Task | None
  tok: Tokenizer
  mesh: jax.sharding.Mesh | None
  engine: AnyEngine
  grade: Grading | None
  store: Store
  writer: Writer | Mute
  timers: Timers
  terminal: TextIO
  progress: Progress
  stop: Stop
  profiler: Profiler
  record: dict[str, Any]
  evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  opened: dict[Any, Any] = dataclasses.field(default_factory=dict)  # see checks.check
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

  def save(self, point: Point, block: bool = False) -> bool:
    """Checkpoints what going on needs; False where this update is saved already."""
    update = int(point.state.step)
    new = update != self.saved
    with self.timers('checkpoint'):
      if new:
        tree, meta = points.saved(self.exp, self.mesh, point)
        self.store.save(update, tree, meta | {'provenance': self.record}, block)
        self.saved = update
      elif block:
        self.store.wait()
    return new

  def sources(self, data: Mixture, length: int) -> list[Source]:
    """What a mixture draws from, opened once for each length of a line."""
    if (data, length) not in self.opened:
      with self.timers('data'):
        self.opened[data, length] = supervised.opened(data, length, self.task, self.tok)
    return self.opened[data, length]

  def keep_evaluations(self, found: list[dict[str, Any]]) -> None:
    """Puts the evaluations so far beside the checkpoints."""
    self.evaluations = found
    write = functools.partial(files.write_json, self.workdir / EVALUATIONS, found)
    processes.together(lambda: processes.leader() and write())


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
    run = processes.together(lambda: build(exp, workdir, profile, stack))
    processes.agree(checks.facts(exp, run.record, run.store.steps(), evaluations(workdir)))

    def begin() -> None:
      provenance.write(workdir, config.to_json(exp), run.record)
      keep_tokenizer(exp, workdir)
      run.writer = stack.enter_context(Writer(workdir))

    processes.together(lambda: processes.leader() and begin())
    yield run


def keep_tokenizer(exp: Experiment, workdir: pathlib.Path) -> None:
  """A public tokenizer's files into the workdir, which is then whole wherever it goes."""
  target = workdir / PUBLIC
  if isinstance(exp.tokenizer, Public) and not target.exists():
    folder.keep(folder.published(exp.tokenizer.path), target)


def build(
  exp: Experiment, workdir: pathlib.Path, profile: Window | None, stack: contextlib.ExitStack
) -> Run:
  """The run, checked; nothing is written and no other process is heard."""
  tok = make_tokenizer(exp.tokenizer)
  task = None if exp.task is None else make_task(exp.task)
  mesh = meshes.make(exp.mesh)
  mesh = mesh if mesh.size > 1 else None
  opened: dict[Any, Any] = {}
  record = provenance.record() | {'data': checks.check(exp, tok, task, mesh, opened)}
  every = exp.checkpoint
  store = stack.enter_context(Store(workdir / FOLDER, every.keep, every.keep_every))
  checks.same(exp, workdir, store, record['data'])
  grade = None
  if task is not None:
    make = functools.partial(make_task, exp.task)
    pool = Pool(make, exp.verifier.workers, exp.verifier.seconds)
    grade = stack.enter_context(Grading(pool.map, pool.close))
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
    grade=grade,
    store=store,
    writer=Mute(),
    timers=Timers(),
    terminal=terminal,
    progress=Progress('start', 0, terminal),
    stop=None,
    profiler=stack.enter_context(Profiler(profile if processes.leader() else None, workdir)),
    record=record,
    opened=opened,
  )
  run.stop = stack.enter_context(Stop(every.deadline, lambda text: run.progress.note(text)))
  replays = any(isinstance(s, RL) and s.routing == 'replay' for s in exp.stages)
  run.engine = engines.make(exp.engine, exp.model, tok.stops, mesh, run.announce, replays)
  if mesh is not None:
    stack.enter_context(jax.set_mesh(mesh))
  return run
