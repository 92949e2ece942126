"""What a run measures: a line of JSON a step, the same for TensorBoard, and where time goes.

    workdir/metrics.jsonl   {"stage": "grpo", "step": 12, "time": 1763, "reward": 0.62, …}
    workdir/tb/             TensorBoard events, tags `stage/name`

A resumed run appends to both. Steps that it repeats are written again; `read` merges the rows of
one (stage, step), later values winning, so that a curve has one value a step.
"""

import contextlib
import importlib
import json
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from r1jax.core import files

METRICS = 'metrics.jsonl'


class Writer:
  """Appends metrics to a workdir; one process of a run holds it."""

  def __init__(self, workdir: str | pathlib.Path, clock: Callable[[], float] = time.time):
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path, self._clock = workdir / METRICS, clock
    torn = path.exists() and path.read_bytes()[-1:] not in (b'', b'\n')
    self._lines = path.open('a', encoding='utf-8', buffering=1)
    if torn:
      self._lines.write('\n')
    self._board = _Board(workdir / 'tb')

  def write(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
    """Writes one row of scalars; a number that is not finite becomes null."""
    if taken := {'stage', 'step', 'time'} & set(metrics):
      raise ValueError(f'metrics may not be named {sorted(taken)}: a row has these already')
    values, now = {name: float(value) for name, value in metrics.items()}, self._clock()
    row = {'stage': stage, 'step': int(step), 'time': round(now, 3)} | values
    self._lines.write(files.json_text(row) + '\n')
    self._board.write(step, now, {f'{stage}/{name}': value for name, value in values.items()})

  def flush(self) -> None:
    """Puts everything written so far into the files."""
    self._lines.flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    self._lines.close()
    self._board.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


class _Board:
  """TensorBoard's event file, by tensorboardX's own encoding.

  Its package imports torch where there is one: that costs seconds, and on a GPU machine brings
  another CUDA runtime into the process. So torch is hidden while it loads.
  """

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    hidden = {} if 'torch' in sys.modules else {'torch': None}
    sys.modules.update(hidden)
    try:
      events = importlib.import_module('tensorboardX.event_file_writer')
      self._event = importlib.import_module('tensorboardX.proto.event_pb2').Event
      self._summary = importlib.import_module('tensorboardX.proto.summary_pb2').Summary
    finally:
      for name in hidden:
        del sys.modules[name]
    self._file = events.EventsWriter(str(folder / 'events'))

  def write(self, step: int, now: float, values: Mapping[str, float]) -> None:
    """One event of scalars."""
    shown = [self._summary.Value(tag=name, simple_value=x) for name, x in values.items()]
    event = self._event(step=int(step), wall_time=now, summary=self._summary(value=shown))
    self._file.write_event(event)
    self._file.flush()

  def close(self) -> None:
    """Flushes and closes."""
    self._file.close()


class Mute:
  """A writer that writes nothing: of the processes that do not lead."""

  def write(self, step: int, stage: str, metrics: Mapping[str, Any]) -> None:
    """Drops the row."""

  def flush(self) -> None:
    """Nothing to do."""


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a workdir, one a (stage, step) in order of first appearance; none is no error.

  A line torn by a run that was killed is left out.
  """
  path, rows = pathlib.Path(workdir) / METRICS, {}
  for line in path.read_text('utf-8', 'replace').splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      row = json.loads(line)
      rows.setdefault((row['stage'], row['step']), {}).update(row)
  return list(rows.values())


class Timers(threading.local):
  """Seconds by name: `with timers('rollout'): …`; the time of an inner timer is its own alone.

  Each thread has times of its own, from zero on: what passes in the background adds to no step.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._seconds: dict[str, float] = {}
    self._open: list[str] = []
    self._since = 0.0

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    self._charge()
    self._open.append(name)
    try:
      yield
    finally:
      self._charge()
      self._open.pop()

  def _charge(self) -> None:
    """Gives the time since the last boundary to the innermost open timer."""
    now = self._clock()
    if self._open:
      name = self._open[-1]
      self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
    self._since = now

  def seconds(self) -> dict[str, float]:
    """Seconds by name; a timer that is still open counts up to its last boundary."""
    return dict(self._seconds)

  def shares(self) -> dict[str, float]:
    """Fractions of all the time measured, by name; they add up to 1."""
    total = sum(self._seconds.values())
    return {name: seconds / total for name, seconds in self._seconds.items()} if total else {}

  def take(self) -> dict[str, float]:
    """The seconds as metrics (`time/rollout`) since the last take, and starts from zero."""
    taken = {f'time/{name}': seconds for name, seconds in self._seconds.items()}
    self._seconds.clear()
    return taken
