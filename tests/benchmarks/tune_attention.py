"""Block and chunk sizes of attention, tuned on the device that is there.

  python -m tests.benchmarks.tune_attention [--only=window,index] [--length=4096] [--write=FILE]

Each op at each shape class has a rule for its sizes. Candidates around it take turns with it; one
is kept if it is more than 3 % faster in the median, and is so again, alone against the rule. What
does not compile or does not fit is passed over. Blocks are tuned pass by pass: forward alone, then
the backward passes within forward and backward.

Without --write the table is printed; --write=r1jax/kernels/measured.py puts this device's entries
where the kernels look them up (commit it), and keeps those of other devices.
"""

import argparse
import functools
import itertools
import pathlib
import pprint
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels import sizes
from r1jax.kernels.attention import blocks, dense
from r1jax.kernels.attention.blocks import Blocks
from r1jax.kernels.attention.lists import Band, Sizes, Tokens
from r1jax.kernels.index import kl_dense, kl_selected, top_k
from r1jax.kernels.measured import MEASURED
from r1jax.kernels.platform import kernels
from r1jax.kernels.selected import selected_attention
from tests.benchmarks.bars import machine

MARGIN = 1.03
HEAD = '''"""Sizes that beat the rules, by device and shape class (sizes.py): written by a program.

python -m tests.benchmarks.tune_attention --write=r1jax/kernels/measured.py
"""

MEASURED: dict[str, dict[str, tuple[int, ...]]] = '''

Choice = tuple[int, ...]


class Stage(NamedTuple):
  """Candidates beside the sizes in force, and a program of given sizes: a call that waits."""

  candidates: Callable[[Choice], Iterable[Choice]]
  program: Callable[[Choice], Callable[[], Any]]


class Job(NamedTuple):
  """What is tuned: its label in the table, its rule, and the stages one after the other."""

  label: str
  rule: Choice
  stages: tuple[Stage, ...]


class Heads(NamedTuple):
  """Query heads, kv heads, and widths of keys and values."""

  query: int
  kv: int
  width: int
  value: int


def winner(
  rule: Choice, candidates: Iterable[Choice], seconds: Callable[[Choice], float], rounds: int
) -> Choice:
  """The fastest candidate that beats the rule by more than the margin, twice; else the rule."""
  first = medians([rule, *candidates], seconds, rounds)
  beats = lambda found, choice: found[rule] > MARGIN * found[choice]
  for choice in sorted((x for x in first if beats(first, x)), key=first.get):
    if beats(medians([rule, choice], seconds, rounds), choice):
      return choice
  return rule


def medians(
  choices: list[Choice], seconds: Callable[[Choice], float], rounds: int
) -> dict[Choice, float]:
  """Median seconds of each; they take turns, and the first turn does not count."""
  taken = {choice: [] for choice in choices}
  for turn, choice in itertools.product(range(rounds + 1), taken):
    taken[choice] += [seconds(choice)] * (turn > 0)
  return {choice: statistics.median(x) for choice, x in taken.items()}


def tuned(job: Job, rounds: int) -> Choice:
  """Stage after stage, each from what the one before it found."""
  found = job.rule
  for stage in job.stages:
    programs = {found: stage.program(found)}
    for choice in stage.candidates(found):
      try:
        programs[choice] = programs.get(choice) or stage.program(choice)
      except Exception as why:  # every compiler has its own way to say that sizes do not fit
        print(f'  {choice} left out: {str(why).splitlines()[0][:90]}')
    found = winner(found, [x for x in programs if x != found], seconds_of(programs), rounds)
  return found


def seconds_of(programs: dict[Choice, Callable[[], Any]]) -> Callable[[Choice], float]:
  """Wall time of one call."""

  def one(choice: Choice) -> float:
    began = time.perf_counter()
    programs[choice]()
    return time.perf_counter() - began

  return one


def ready(f: Callable, *args: Any) -> Callable[[], Any]:
  """f compiled for its arguments: a call that waits for the results."""
  program = jax.jit(f).lower(*args).compile()
  run = lambda: jax.block_until_ready(program(*args))
  run()
  return run


# What there is to tune.


def around(choice: Choice, at: slice, least: int) -> Iterator[Choice]:
  """Choices with the numbers at some places halved, doubled, or twice doubled."""
  for factors in itertools.product((0.5, 1, 2, 4), repeat=len(choice[at])):
    numbers = [int(n * f) for n, f in zip(choice[at], factors)]
    if min(numbers) >= least:
      yield (*choice[: at.start], *numbers, *choice[at.stop :])


def drawn(dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
  """Random arrays."""
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes)]


def row(length: int, step: int = 1) -> Tokens:
  """One segment; every `step`-th position of it."""
  index_BM = jnp.arange(0, length * step, step, dtype=jnp.int32)[None]
  return Tokens(index_BM, jnp.ones_like(index_BM))


def banded_job(name: str, band: Band, heads: Heads, length: int, dtype: str) -> Job:
  """Blocks of banded attention; `before` meets an eighth of the positions."""
  memory = length // 8 if band.near else length
  qkv = drawn(
    dtype,
    (1, length, heads.query, heads.width),
    *((1, memory, heads.kv, width) for width in (heads.width, heads.value)),
  )
  tokens = row(length), row(memory, length // memory)
  group = heads.query // heads.kv
  rule = blocks.default_blocks(name, band, group, length, memory)

  def program(both: bool, choice: Choice) -> Callable[[], Any]:
    by = Blocks(*(Sizes(*choice[i : i + 2]) for i in (0, 2, 4)))
    run = lambda *qkv: blocks.banded_attention(
      *qkv, *tokens, band, heads.width**-0.5, None, by, name
    )[0]
    loss = lambda *qkv: run(*qkv).astype(jnp.float32).sum()
    return ready(jax.grad(loss, (0, 1, 2)) if both else run, *qkv)

  least = {'xla': 16, 'gpu': 64, 'tpu': 128}[name]
  passes = 2 if name == 'xla' else 3  # XLA's backward is one pass
  stages = (
    Stage(
      functools.partial(around, at=slice(2 * i, 2 * i + 2), least=least),
      functools.partial(program, i > 0),
    )
    for i in range(passes)
  )
  flat = tuple(n for s in rule for n in (s.query, s.key))
  return Job(sizes.banded(name, band, group, heads.width, length), flat, tuple(stages))


def chunk_job(label: str, rule: int, run: Callable, arrays: list, grad: bool) -> Job:
  """The chunk of an op in XLA; run(chunk, *arrays)."""

  def program(choice: Choice) -> Callable[[], Any]:
    one = functools.partial(run, choice[0])
    loss = lambda *x: jax.tree.leaves(one(*x))[0].astype(jnp.float32).sum()
    return ready(jax.value_and_grad(loss) if grad else one, *arrays)

  stage = Stage(functools.partial(around, at=slice(0, 1), least=1), program)
  return Job(label, (rule,), (stage,))


def selected_job(heads: Heads, length: int, dtype: str, size: int, listed: int) -> Job:
  """Attention over listed pages, forward and backward."""
  arrays = drawn(
    dtype,
    (1, length, heads.query, heads.width),
    *((1, length, heads.kv, width) for width in (heads.width, heads.value)),
  )
  pages = np.random.default_rng(0).permuted(np.tile(np.arange(length // size), (length, 1)), axis=1)
  ids = jnp.asarray(pages[:, :listed].astype(np.int32))[None, :, None]
  at, scale = row(length), heads.width**-0.5

  def run(chunk: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    return selected_attention(q, k, v, ids, size, at, at, scale, chunk=chunk, implementation='xla')

  label = sizes.label('selected', page=size, places=ids.shape[-1] * size, heads=heads.query)
  return chunk_job(label, 32, run, arrays, grad=True)


def index_jobs(heads: Heads, length: int, dtype: str) -> Iterator[Job]:
  """The lightning indexer: its choice, and its loss over all and over chosen keys."""
  arrays = drawn(dtype, (1, length, 4, 32), (1, length, 32), (1, length, 4))
  target = drawn(dtype, *((1, length, n, heads.width) for n in (heads.query, heads.kv)))
  at, A = row(length), min(length // 4, 512)
  of = lambda op, **more: sizes.label(f'index/{op}', **more)
  ids = jnp.broadcast_to(jnp.arange(A, dtype=jnp.int32), (1, length, A))
  choose = lambda chunk, *x: top_k(*x, at, at, A, chunk, 'xla')
  over_all = lambda chunk, *x: kl_dense(*target, 1.0, *x, at, at, chunk, 'xla')
  over_some = lambda chunk, *x: kl_selected(*target, 1.0, *x, at, at, ids, chunk, 'xla')
  yield chunk_job(of('top_k', length=length), 256, choose, arrays, grad=False)
  yield chunk_job(of('kl_dense', heads=heads.query, length=length), 128, over_all, arrays, True)
  yield chunk_job(of('kl_selected', heads=heads.query, places=A), 16, over_some, arrays, True)


def splash_job(heads: Heads, length: int, dtype: str) -> Job:
  """Blocks of the library's kernels; they are read while a program is made."""
  arrays = drawn(
    dtype, *((1, length, *x) for x in ((heads.query, heads.width), (heads.kv, heads.width))),
    (1, length, heads.kv, heads.value),
  )  # fmt: skip

  def run(size: int, *qkv: jax.Array) -> jax.Array:
    return dense.splash(*qkv, row(length).segments_BM, heads.width**-0.5, size=size)

  label = sizes.label('splash', length=length)
  return chunk_job(label, dense.splash_rule(length), run, arrays, grad=True)


def jobs(kind: str, lengths: list[int], only: list[str]) -> Iterator[tuple[str, Job]]:
  """(name, job) of what the kind of kernels there is can be tuned in."""
  every = [Heads(8, 2, 64, 64)] if kind == 'xla' else [Heads(32, 8, 128, 128)]
  every += [Heads(16, 16, 192, 128)] * (kind != 'xla')
  dtype = 'float32' if kind == 'xla' else 'bfloat16'
  bands = {'full': Band(), 'window': Band(0, 64), 'wide': Band(0, 512), 'before': Band(512)}
  for heads, length in itertools.product(every, lengths):
    for name in (x for x in bands if x in only):
      yield name, banded_job(kind, bands[name], heads, length, dtype)
    if 'selected' in only:
      yield 'selected', selected_job(heads, length, dtype, 16, 16)
    if 'index' in only:
      yield from (('index', job) for job in index_jobs(heads, length, dtype))
    if 'splash' in only and kind == 'tpu':
      yield 'splash', splash_job(heads, length, dtype)


# The table.


def merged(found: dict[str, Choice], kept: dict[str, Choice], device: str) -> dict:
  """All devices' entries with those of this one replaced where they were tuned again."""
  here = {k: v for k, v in MEASURED.get(device, {}).items() if k not in kept} | found
  return {k: v for k, v in (MEASURED | {device: here}).items() if v}


def write(table: dict, path: pathlib.Path) -> None:
  """The module, formatted as the others are."""
  path.write_text(HEAD + pprint.pformat(table, indent=2, width=96) + '\n')
  subprocess.run([sys.executable, '-m', 'ruff', 'format', '--quiet', str(path)], check=True)


NAMES = ('full', 'window', 'wide', 'before', 'selected', 'index', 'splash')


def main() -> None:
  """Tunes, prints, writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  accelerated = jax.default_backend() != 'cpu'
  parser.add_argument('--only', default=','.join(NAMES), help=f'some of {",".join(NAMES)}')
  parser.add_argument('--length', default='8192,65536' if accelerated else '4096')
  parser.add_argument('--rounds', type=int, default=10 if accelerated else 5)
  parser.add_argument('--write', type=pathlib.Path)
  args = parser.parse_args()
  unknown = set(args.only.split(',')) - set(NAMES)
  if unknown:
    parser.error(f'--only: {", ".join(unknown)} unknown; known: {", ".join(NAMES)}')
  print(machine())
  won, kept = {}, {}
  lengths = [int(n) for n in args.length.split(',')]
  for name, job in jobs(kernels(), lengths, args.only.split(',')):
    found = tuned(job, args.rounds)
    (kept if found == job.rule else won)[job.label] = found
    print(f'{name:<9}{job.label}: rule {job.rule}, ' + (
      'kept' if found == job.rule else f'beaten by {found}'
    ), flush=True)  # fmt: skip
  table = merged(won, kept, jax.devices()[0].device_kind)
  if args.write:
    write(table, args.write)
  else:
    pprint.pprint(table, width=96)


if __name__ == '__main__':
  main()
