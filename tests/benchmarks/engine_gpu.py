"""Decoding on one GPU: the engine, its compiled step alone, and what the memory's speed allows.

  python -m tests.benchmarks.engine_gpu [--tiny]

R1-Distill-Qwen-1.5B's shape with random weights in bf16; 64 rows whose prompts have 1,024, 2,048
and 3,072 tokens, decoded on from there. A line for each kind of pages and length of burst:

engine      tokens/s of `Continuous` from one plan to the next, all rows decoding
alone       tokens/s of the compiled burst called again and again on the same places
roofline    tokens/s if a step only read the weights (without the embedding's table) and the cache
            of the rows' texts once, at the rate at which this device copies 2 GiB, measured here
scheduler   the scheduler's share of the engine's time; host: all that it loses beside `alone`

Prompts are computed by requests of one token, whose pages the measured ones find: no prefill is in
the figures. --tiny: a small model that shows on a CPU that everything runs; its bar is not run.
"""

import argparse
import dataclasses
import functools
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import tree
from r1jax.engine import steps
from r1jax.engine.continuous import Continuous
from r1jax.engine.plan import Config
from r1jax.engine.requests import Request
from r1jax.engine.sampling import controls
from r1jax.model import cache as caches
from r1jax.model import presets
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from tests.benchmarks.bars import bar, machine
from tests.benchmarks.engine import GREEDY, SEED

GIB = 2**30
NEVER = np.int32(1 << 30)  # patience of a burst for which nobody waits
KINDS = ((None, 1), (None, 8), (None, 32), ('int8', 32))


@dataclasses.dataclass(frozen=True)
class Size:
  """What is measured. unit: prompts have 1, 2 and 3 times so many tokens. new: tokens timed."""

  cfg: ModelConfig
  slots: int
  unit: int
  page: int
  new: int
  copied: int

  @property
  def longest(self) -> int:
    """Tokens of a text."""
    return 4 * self.unit

  @property
  def lengths_B(self) -> np.ndarray:
    """Of the prompts."""
    return self.unit * (1 + np.arange(self.slots) % 3)


FULL = Size(presets.qwen_1b5(), slots=64, unit=1024, page=64, new=128, copied=2 * GIB)
TINY = Size(presets.tiny_dense(), slots=4, unit=192, page=16, new=32, copied=GIB // 64)


def copy_rate(size: int, rounds: int = 20) -> float:
  """Bytes a second, read and written, of x + 1."""
  x = jnp.zeros(size // 4, jnp.float32)
  f = jax.jit(lambda x: x + 1)
  f(f(x)).block_until_ready()
  began = time.perf_counter()
  for _ in range(rounds):
    x = f(x)
  x.block_until_ready()
  return 2 * size * rounds / (time.perf_counter() - began)


def read_bytes(size: Size, params: Any, stored: str | None) -> int:
  """Of a step at the middle of what is timed."""
  idle = 0 if size.cfg.tied else tree.bytes_of(params['embedding'])
  positions = int(size.lengths_B.sum()) + size.slots * size.new // 2
  return tree.bytes_of(params) - idle + positions * caches.bytes_a_token(size.cfg, stored)


def alone(size: Size, params: Any, stored: str | None, burst: int) -> float:
  """Tokens/s of the compiled burst; the device always has the next one to do."""
  B, pages = size.slots, size.longest // size.page
  settings, kinds = controls([GREEDY] * B)
  rows = steps.Rows(
    jnp.arange(B * pages, dtype=jnp.int32).reshape(B, pages),
    jnp.zeros((B, len(SEED)), jnp.uint32), settings,
  )  # fmt: skip
  decode = functools.partial(steps.decode, cfg=size.cfg, kinds=kinds, stops=(), most=burst)
  decode = jax.jit(decode, donate_argnums=1)
  memory = steps.Memory(caches.paged(size.cfg, B * pages, size.page, stored))
  token_B, left_B = jnp.ones(B, jnp.int32), jnp.full(B, burst, jnp.int32)
  at_B = jnp.asarray(size.lengths_B + size.new // 2, jnp.int32)

  def bursts(memory: steps.Memory, count: int) -> steps.Memory:
    for _ in range(count):
      memory, _ = decode(params, memory, token_B, None, at_B, left_B, rows, np.int32(burst), NEVER)
    return jax.block_until_ready(memory)

  memory = bursts(memory, 2)
  began = time.perf_counter()
  bursts(memory, size.new // burst)
  return B * size.new / (time.perf_counter() - began)


def whole(size: Size, params: Any, stored: str | None, burst: int) -> tuple[float, float]:
  """(tokens/s, the scheduler's share) of the engine while all rows decode."""
  chance, pages = np.random.default_rng(0), size.slots * size.longest // size.page
  config = Config(size.slots, pages, size.page, size.longest, chunk=size.unit, burst=burst)
  engine = Continuous(size.cfg, (), config, stored=stored)
  prompts = [tuple(chance.integers(8, size.cfg.vocab, n).tolist()) for n in size.lengths_B]
  engine.load(params)
  for _ in engine.generate([Request(p, 1, SEED, GREEDY) for p in prompts]):
    pass
  for p in prompts:
    engine.submit(Request(p, size.unit, SEED, GREEDY))
  while engine.shards.waiting or any(s.filling for _, s in engine.shards.running()):
    engine.step()
  for _ in range(2):
    engine.step()
  engine.seconds.clear()
  before, began = engine.counts['written'], time.perf_counter()
  for _ in range(size.new // burst):
    engine.step()
  took = time.perf_counter() - began
  assert len(list(engine.shards.running())) == size.slots
  return (engine.counts['written'] - before) / took, engine.seconds['host'] / took


def main() -> None:
  """Prints the table and the bar."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--tiny', action='store_true')
  size = TINY if parser.parse_args().tiny else FULL
  with tempfile.TemporaryDirectory() as folder:
    jax.config.update('jax_compilation_cache_dir', folder)  # bursts share the programs that fill
    shares = table(size)
  full = [share for (stored, _), share in shares.items() if stored is None]
  bar('gpu_decode_share_percent', None if size is TINY else 100 * max(full), '≥', 60)


def table(size: Size) -> dict[tuple, float]:
  """The engine's share of the roofline by pages and burst."""
  print(machine())
  params = place.init(Transformer(size.cfg), jax.random.key(0), None, dummy_inputs(size.cfg))
  params = jax.tree.map(lambda x: x.astype(size.cfg.dtype), params)
  rate, shares = copy_rate(size.copied), {}
  print(f'copies {rate / 1e12:.3g} TB/s; weights {tree.bytes_of(params) / GIB:.3g} GiB')
  print('pages  burst    engine     alone  roofline  share  alone  scheduler   host')
  for stored, burst in KINDS:
    step, (engine, scheduler) = (f(size, params, stored, burst) for f in (alone, whole))
    roof = size.slots * rate / read_bytes(size, params, stored)
    shares[stored, burst] = engine / roof
    percent = ''.join(f'{100 * x:{n}.1f}%' for x, n in (
      (engine / roof, 6), (step / roof, 6), (scheduler, 10), (1 - engine / step, 6)
    ))  # fmt: skip
    print(
      f'{stored or size.cfg.dtype:<8}{burst:>4}{engine:>10.0f}{step:>10.0f}{roof:>10.0f}{percent}',
      flush=True,
    )
  return shares


if __name__ == '__main__':
  main()
