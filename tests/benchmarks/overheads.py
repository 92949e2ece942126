"""What runs beside the steps: checkpoints, data, start-up. And how full packing gets.

  python -m tests.benchmarks.overheads [--pairs=40] [--steps=8]

Checkpoints: SFT of the quickstart in short blocks of steps, every other one with a save at its
start, in one process; a block's time holds the blocking part and what the writing behind it takes
from the steps, and the cost is divided by the steps between two saves of the quickstart's config.
Data wait: the share of the same steps that waited for a batch. Start-up: the quickstart's command
from the shell to its first row in metrics.jsonl, with compiled programs cached, and the same
command again after SIGKILL, which resumes.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from configs import pretrain_tiny, quickstart
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.data.batch import Row
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.data.stream import Shape, Stream
from r1jax.train import loop, telemetry
from r1jax.train.experiment import Experiment
from r1jax.train.keeper import Keeper
from r1jax.train.run import open_run
from r1jax.train.stages import run_supervised
from r1jax.train.supervised import SFT
from tests.benchmarks.bars import bar, machine


class Blocks(Keeper):
  """Saves at the start of some blocks of steps and times them all, until the save is complete."""

  ORDER = (False, True, True, False)  # neighbours are compared: the machine's speed drifts

  def __init__(self, run, steps, size):
    super().__init__(run, steps)
    self._size, self._begin, self.seconds = size, None, []

  def done(self, point, figures):
    self._tell(point.step, dict(figures))
    block, rest = divmod(point.step - 1, self._size)  # the first step is none's: it compiles
    if rest:
      return
    self._run.store.wait()
    if block:
      self.seconds.append(time.monotonic() - self._begin)
    self._begin = time.monotonic()
    if self.ORDER[block % 4]:
      self._run.save(point)


def blocks(given, pairs: int, size: int) -> tuple[float, float]:
  """(what a save costs as a share of the steps between two, data wait)."""
  exp = config.from_dict(Experiment, given)
  stage, steps = exp.stages[0], (4 * (pairs // 2) + 2) * size + 1
  if isinstance(stage, SFT):
    stage = dataclasses.replace(stage, steps=steps)
  else:  # its first shape, in the last phase's context
    phase = dataclasses.replace(stage.phases[0], steps=steps, yarn=stage.phases[-1].yarn)
    stage = dataclasses.replace(stage, phases=(phase,))
  exp = dataclasses.replace(exp, stages=(stage,))
  with tempfile.TemporaryDirectory() as folder, open_run(exp, pathlib.Path(folder)) as run:
    point = loop.begin(run)
    with run.telling(stage.name, stage.steps, 0):
      keeper = Blocks(run, stage.steps, size)
      run_supervised(run, stage, point, keeper)
    run.writer.flush()
    rows = telemetry.read(folder)[2 * size :]
  seconds = keeper.seconds[2:]  # the first save compiles its checksums
  signs = [1 if Blocks.ORDER[(i + 2) % 4] else -1 for i in range(len(seconds))]
  costs = [sum(s * t for s, t in zip(signs[i : i + 2], seconds[i : i + 2]))
           for i in range(0, len(seconds) - 1, 2)]  # fmt: skip
  step = statistics.median(t for s, t in zip(signs, seconds) if s < 0) / size
  cost, spread = statistics.median(costs), statistics.quantiles(costs, n=4)
  print(
    f'{exp.name}: step {1e3 * step:.0f} ms; a save costs {1e3 * cost:.0f} ms '
    f'(quartiles {1e3 * spread[0]:.0f} and {1e3 * spread[2]:.0f} of {len(costs)} pairs of blocks)'
  )
  wait = sum(r['time/data'] for r in rows) / sum(r['time/data'] + r['time/train'] for r in rows)
  return cost / (exp.checkpoint.every * step), wait


class Documents:
  """Documents of given lengths."""

  name = 'lengths'

  def __init__(self, lengths):
    self._lengths = lengths

  def __len__(self):
    return len(self._lengths)

  def rows(self, i):
    n = self._lengths[i] + 1
    return [Row(np.zeros(n, np.int32), np.ones(n, np.float32))]


def fill(sigma: float, length: int = 1024, batches: int = 100) -> float:
  """How full 8 × length batches get on log-normal lengths whose median is an eighth of a line."""
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(length / 8), sigma, 20_000), 1, length).astype(int)
  stream = iter(Stream([Documents(lengths)], Mixture((Part(Worked()),)), Shape(8, length, 0), 0))
  return float(np.mean([(next(stream)[0].inputs.segments_BL > 0).mean() for _ in range(batches)]))


def first_step(workdir: pathlib.Path) -> float:
  """Seconds from the shell's start to a new row of metrics; the run is killed then."""
  path = workdir / telemetry.METRICS
  rows = lambda: path.read_bytes().count(b'\n') if path.exists() else 0
  before, begin = rows(), time.monotonic()
  command = [sys.executable, '-m', 'r1jax.bin.train', '--config=configs/quickstart.py']
  command += [f'--workdir={workdir}', '--config.checkpoint.every=1']
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while rows() == before:
    if process.poll() is not None:
      raise RuntimeError(f'{" ".join(command)} ended with {process.returncode}')
    time.sleep(0.01)
  seconds = time.monotonic() - begin
  while Store(workdir / FOLDER).latest() is None:
    time.sleep(0.01)
  process.kill()
  process.wait()
  return seconds


def starts() -> tuple[float, float]:
  """(first step of a fresh workdir with cached programs, first step of a resumed one)."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    empty = first_step(root / 'a')
    again = max(first_step(root / name) for name in 'bc')
    resumed = first_step(root / 'b')
  print(f'first step: {empty:.1f} s, again {again:.1f} s, resumed {resumed:.1f} s')
  return again, resumed


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--pairs', type=int, default=40)
  parser.add_argument('--steps', type=int, default=8)
  args = parser.parse_args()
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp())
  print(machine())
  again, resumed = starts()
  share, wait = blocks(quickstart.get_config(), args.pairs, args.steps)
  text = blocks(pretrain_tiny.get_config(), 4, args.steps)[1]
  fills = {sigma: fill(sigma) for sigma in (0.5, 1.0, 1.5)}
  print('fill by sigma of the lengths: ' + ', '.join(f'{s} {f:.4f}' for s, f in fills.items()))
  bar('checkpoint_share_of_step_time', 100 * share, '<', 2, ' %')
  bar('data_wait_sft', 100 * wait, '<', 2, ' %')
  bar('data_wait_pretrain', 100 * text, '<', 2, ' %')
  bar('packing_fill', 100 * min(fills.values()), '≥', 97, ' %')
  bar('second_start_to_first_step', again, '<', 20, ' s')
  bar('resume_to_first_step', resumed, '≤', 30, ' s')


if __name__ == '__main__':
  main()
