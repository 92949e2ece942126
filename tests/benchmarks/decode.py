"""Decode attention over the pool: what sparse patterns save, how near the device's limits it is.

  python -m tests.benchmarks.decode [--only=paths,bytes,kernels] [--batch=16] [--memory=512,4096]

paths     tokens/s of a whole decode step of small models, every row at the end of its memory: full,
          a window of 64, that window and 10 % key tokens, of models with grouped heads learned
          blocks, 4 of 64 beside the window; each by `pool` (the listed pages are read where they
          lie) and by `gather` (the whole table is copied and masked). They take turns; the least
          time of each. The last column is the way that the model goes by itself
bytes     of the cache of one sequence of 128K tokens, of the arrays themselves: a window of 512 and
          10 % key tokens in a ring with pins, against full; and what public models would take
kernels   attention alone, every place of every row read: its bytes a second over those of a copy
          measured here, its flops over those of a matrix product measured here, int8 over bf16. On
          an H100 or H200 by XLA and by our kernel, of which the bars take the faster and name it.
          They are an H200's; elsewhere they are not run, and on CPUs the shapes are small
"""

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import tree
from r1jax.kernels.paged import paged_attention
from r1jax.kernels.paged.visible import visible_full
from r1jax.kernels.platform import kernels
from r1jax.model import cache as caches
from r1jax.model import pool, presets, transformer
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Full,
  Hybrid,
  KeyTokens,
  Layer,
  ModelConfig,
  Pattern,
  Window,
)
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.model.types import Place
from r1jax.sharding import place
from tests.benchmarks.bars import bar, machine
from tests.benchmarks.engine_gpu import copy_rate

GIB = 2**30
PAGE, RING, LONG = 16, 1024, 128 * 1024
SPARSE = Hybrid(512, KeyTokens(0.1))
PATTERNS = {
  'full': Full(),
  'window': Window(64),
  'hybrid': Hybrid(64, KeyTokens(0.1)),
  'blocks': Blocks(selected=4, window=64),
}
SMOLLM = presets.smollm2_135m()
MODELS = {
  'tiny': presets.tiny_r1(),
  'smollm2, 4 of its layers': dataclasses.replace(SMOLLM, layers=SMOLLM.layers[:4]),
}


def patterned(cfg: ModelConfig, pattern: Pattern) -> ModelConfig:
  """The model with this pattern in all layers; a fifth of the tokens may be key tokens."""
  with_it = lambda attention: dataclasses.replace(attention, pattern=pattern)
  layers = tuple(dataclasses.replace(l, attention=with_it(l.attention)) for l in cfg.layers)
  ids = tuple(range(0, cfg.vocab, 5))
  return dataclasses.replace(cfg, layers=layers, mtp=(), key_ids=ids, remat='none')


def step(cfg: ModelConfig, direct: bool, batch: int, memory: int) -> Callable[[], None]:
  """A compiled decode step at the last position, over the pool itself or not, with a cache."""
  pages = memory // PAGE
  params = place.init(Transformer(cfg), jax.random.key(0), None, dummy_inputs(cfg))
  cache = jax.tree.map(jnp.ones_like, caches.paged(cfg, batch * pages, PAGE))
  table_BT = np.random.default_rng(0).permutation(batch * pages).reshape(batch, pages)
  at_B1 = jnp.full((batch, 1), memory - 1, jnp.int32)
  ones_B1 = jnp.ones_like(at_B1)
  inputs = Inputs(ones_B1, at_B1, ones_B1, (), jnp.asarray(table_BT, jnp.int32))

  def one(params: Any, cache: tuple) -> tuple[jax.Array, tuple]:
    out = Transformer(cfg).apply({'params': params}, inputs, cache)
    return transformer.logits(params, cfg, out.x_BLD[:, 0]).argmax(-1), out.cache

  with mock.patch.object(pool, 'serves', lambda *_: direct):
    run = jax.jit(one, donate_argnums=1).lower(params, cache).compile()
  held = [cache]

  def again() -> None:
    token_B, held[0] = run(params, held[0])
    token_B.block_until_ready()

  return again


def by_itself(cfg: ModelConfig, batch: int, memory: int) -> bool:
  """Whether the model would read the pool itself."""
  there = jax.eval_shape(lambda: caches.paged(cfg, batch * memory // PAGE, PAGE)[0][0])
  at = Place(np.zeros((batch, 1)), None, table_BT=np.zeros((batch, memory // PAGE)))
  return pool.serves(there, at, cfg.layers[0].attention.pattern)


def patterns_of(base: ModelConfig) -> dict[str, Pattern]:
  """Those that its attention can have."""
  grouped = isinstance(base.layers[0].attention, GQA)
  return {name: p for name, p in PATTERNS.items() if grouped or not isinstance(p, Blocks)}


def paths(models: dict[str, ModelConfig], batch: int, lengths: list[int], rounds: int) -> None:
  """Tables, and the bars of sparse patterns on long memory."""
  print(f'\ndecode steps of {batch} rows, tokens/s')
  print('model                     memory  pattern       gather      pool  pool/gather  goes by')
  won, best = {}, {}
  for name, base in models.items():
    for memory in lengths:
      for what, pattern in patterns_of(base).items():
        cfg = patterned(base, pattern)
        both = [step(cfg, direct, batch, memory) for direct in (False, True)]
        rates = [batch / seconds for seconds in fastest(both, rounds)]
        direct = by_itself(cfg, batch, memory)
        won[name, memory, what] = rates[1] / rates[0]
        best[name, memory, what] = rates[direct]
        print(
          f'{name:<25}{memory:>7}  {what:<10}{rates[0]:>10.0f}{rates[1]:>10.0f}'
          f'{rates[1] / rates[0]:>13.2f}  {("gather", "pool")[direct]}',
          flush=True,
        )
      of = {p: best[name, memory, p] / best[name, memory, 'full'] for p in patterns_of(base)}
      print(f'{name}, {memory}: {" : ".join(of)} = {" : ".join(f"{x:.2f}" for x in of.values())}')
  ours = jax.default_backend() == 'cpu' and max(lengths) >= 4096
  for what in ('window', 'hybrid', 'blocks'):
    least = min(x for key, x in won.items() if key[1:] == (max(lengths), what))
    bar(f'cpu_decode_{what}_pool_over_gather', least if ours else None, '≥', 1)


def fastest(runs: list[Callable[[], None]], rounds: int) -> list[float]:
  """The least seconds of each; they take turns, after one that is not counted."""
  seconds = [[] for _ in runs]
  for turn in range(rounds + 1):
    for run, kept in zip(runs, seconds):
      began = time.perf_counter()
      run()
      if turn:
        kept.append(time.perf_counter() - began)
  return list(map(min, seconds))


def sizes() -> None:
  """Cache bytes of hybrid layers with a ring and pins against full ones."""
  print(f'\ncache of one sequence of {LONG} tokens, MiB; window 512 and 10 % key tokens')
  print('model                           full    hybrid     saved')
  saved = []
  for name, spec in (
    ('GQA, a layer', GQA(8, 2, 64)), ('MLA, a layer', MLA(8, 16, 16, 16, 112)),
  ):  # fmt: skip
    model = ModelConfig(8, 8, (Layer(spec, Dense(8)),), dtype='bfloat16')
    for dtype in ('bfloat16', 'int8'):
      make = lambda cfg, dtype=dtype: caches.paged(cfg, LONG // PAGE, PAGE, dtype, 1, RING, LONG)
      made = [tree.bytes_of(make(patterned(model, p))) for p in (Full(), SPARSE)]
      saved.append(compared(f'{name}, {dtype}', *made))
  for cfg, name in ((presets.deepseek_v3(), 'DeepSeek-V3'), (presets.qwen_7b(), 'Qwen 7B')):
    of = [caches.bytes_of(patterned(cfg, p), LONG, None, RING) for p in (Full(), SPARSE)]
    compared(f'{name}, by its shapes', *of)
  bar('decode_cache_bytes_saved_percent', 100 * min(saved), '≥', 63)


def compared(name: str, full: int, sparse: int) -> float:
  """Prints two sizes; the share that is saved."""
  print(
    f'{name:<26}{full / 2**20:>10.1f}{sparse / 2**20:>10.1f}{100 - 100 * sparse / full:>9.1f} %'
  )
  return 1 - sparse / full


@dataclasses.dataclass(frozen=True)
class Case:
  """Heads over a pool whose rows are all full; heads of keys and values None: MLA, 512 + 64."""

  heads: int
  kv_heads: int | None = None
  head: int = 128
  dtype: str = 'bfloat16'

  @property
  def widths(self) -> tuple[int, int]:
    """Of a query and of a value."""
    return (self.head, self.head) if self.kv_heads else (576, 512)


CASES = {
  'gqa': Case(32, 8),
  'gqa_int8': Case(32, 8, dtype='int8'),
  'mla16': Case(16),
  'mla16_int8': Case(16, dtype='int8'),
  'mla128': Case(128),
}


@dataclasses.dataclass(frozen=True)
class Load:
  """Rows, places of each, places of a page; layers of the pool; how often attention runs."""

  rows: int = 64
  places: int = 8192
  page: int = 64
  layers: int = 2
  turns: int = 20
  copied: int = 2 * GIB
  matrix: int = 8192


SMALL = Load(rows=2, places=64, page=16, turns=2, copied=GIB // 256, matrix=256)


def seconds_of(case: Case, load: Load, implementation: str | None) -> tuple[float, int, int]:
  """(of one attention, bytes that it reads, flops)."""
  spec = (
    GQA(case.heads, case.kv_heads, case.head)
    if case.kv_heads
    else MLA(case.heads, 128, 64, 128, 512)
  )
  cfg = ModelConfig(8, 8, (Layer(spec, Dense(8)),) * load.layers, dtype='bfloat16')
  pages = load.rows * load.places // load.page
  cache = caches.paged(cfg, pages, load.page, case.dtype)[0][0]
  cache = jax.jit(lambda c: jax.tree.map(jnp.ones_like, c), donate_argnums=0)(cache)
  keys, values = cache.arrays if case.kv_heads else (cache.arrays[0], None)
  table_BT = np.random.default_rng(0).permutation(pages).reshape(load.rows, -1).astype('i4')
  newest_B = jnp.full(load.rows, load.places - 1, jnp.int32)
  width, value = case.widths
  attend = functools.partial(
    paged_attention, scale=width**-0.5, value_width=value, implementation=implementation
  )
  q_BNH = jax.random.normal(jax.random.key(0), (load.rows, case.heads, width), jnp.bfloat16)

  @jax.jit
  def run(q_BNH: jax.Array, keys: tuple, values: tuple | None) -> jax.Array:
    visible = visible_full(jnp.asarray(table_BT), newest_B, load.page)

    def one(i: jax.Array, q_BNH: jax.Array) -> jax.Array:
      o_BNV, lse_BN = attend(q_BNH, keys, values, i % load.layers, visible)
      # Both are used: XLA leaves out the values where only lse is.
      made_BN = jnp.tanh(lse_BN + o_BNV.astype(jnp.float32).sum(-1))
      return (q_BNH * (1 + 1e-3 * made_BN)[..., None]).astype(q_BNH.dtype)

    return jax.lax.fori_loop(0, load.turns, one, q_BNH)

  best = fastest([lambda: run(q_BNH, keys, values).block_until_ready()], 3)[0] / load.turns
  flops = 2 * case.heads * sum(case.widths) * load.rows * load.places
  return best, tree.bytes_of(cache) // load.layers, flops


def matmul_rate(n: int, rounds: int = 10) -> float:
  """Flops a second of bf16 products of random square matrices."""
  x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16) / n**0.5
  f = jax.jit(lambda a, b: a @ b)
  run = lambda: functools.reduce(lambda y, _: f(y, x), range(rounds), x).block_until_ready()
  return 2 * n**3 * rounds / fastest([run], 3)[0]


def alone(load: Load, ours: bool) -> None:
  """The table of attention alone, and the H200's bars; ours: this is one."""
  copy, product = copy_rate(load.copied), matmul_rate(load.matrix)
  print(f'\n{load.rows} rows of {load.places} places; copies {copy / 1e12:.3g} TB/s, multiplies '
        f'{product / 1e12:.3g} TFLOP/s')  # fmt: skip
  print('attention   by             ms      TB/s  of copy   TFLOP/s  of products')
  took, shares, by = {}, {}, {}
  # Our kernel last: one that hangs keeps nobody from the figures of XLA.
  for kind in ('xla', 'gpu') if kernels() == 'gpu' else (None,):
    for name, case in CASES.items():
      seconds, read, flops = seconds_of(case, load, kind)
      of_copy, of_products = 100 * read / seconds / copy, 100 * flops / seconds / product
      print(
        f'{name:<12}{kind or "unasked":<8}{seconds * 1e3:>9.3f}{read / seconds / 1e12:>10.3f}'
        f'{of_copy:>8.1f}%{flops / seconds / 1e12:>10.3f}{of_products:>12.1f}%',
        flush=True,
      )
      if seconds < took.get(name, math.inf):
        took[name], shares[name], by[name] = seconds, (of_copy, of_products), kind or 'unasked'
  print(f'faster: {", ".join(f"{name} by {kind}" for name, kind in by.items())}')
  value = lambda x: x if ours else None
  for name in ('gqa', 'mla16'):
    bar(f'h200_decode_{name}_of_copy_percent', value(shares[name][0]), '≥', 75)
    bar(f'h200_decode_{name}_int8_over_bf16', value(took[name] / took[f'{name}_int8']), '≥', 1.6)
  bar('h200_decode_mla128_of_products_percent', value(shares['mla128'][1]), '≥', 65)


def main() -> None:
  """Runs what is asked for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='paths,bytes,kernels')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--memory', default='512,4096')
  parser.add_argument('--rounds', type=int, default=10)
  args = parser.parse_args()
  kind = jax.devices()[0].device_kind
  parts = {
    'paths': lambda: paths(MODELS, args.batch, [*map(int, args.memory.split(','))], args.rounds),
    'bytes': sizes,
    'kernels': lambda: alone(Load() if jax.default_backend() != 'cpu' else SMALL, 'H200' in kind),
  }
  asked = args.only.split(',')
  if unknown := set(asked) - set(parts):
    parser.error(f'--only={sorted(unknown)[0]}; known: {", ".join(parts)}')
  print(machine())
  for name in asked:
    parts[name]()


if __name__ == '__main__':
  main()
