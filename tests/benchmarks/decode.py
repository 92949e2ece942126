"""Decode attention over the pool: what sparse patterns save, and how near the device's limits it is.

  python -m tests.benchmarks.decode [--only=paths,bytes,kernels] [--batch=16] [--memory=512,4096]

paths     tokens/s of a whole decode step of small models, every row at the end of its memory: full,
          a window of 64, that window and 10 % key tokens; each by `pool` (the listed pages are read
          where they lie) and by `gather` (the whole table is copied and masked), in turns, the
          least time of each. What the model takes by itself is marked *
bytes     of the cache of one sequence of 128K tokens, of the arrays themselves: a window of 512 and
          10 % key tokens in a ring with pins, against full
kernels   attention alone, every place of every row read: its bytes a second over those of a copy
          measured here, its flops over those of a matrix product measured here, int8 over bf16.
          The bars are an H200's; elsewhere they are not run, and the shapes are small
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
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
from r1jax.sharding import place
from tests.benchmarks.bars import bar, machine
from tests.benchmarks.engine_gpu import copy_rate

PAGE = 16
PATTERNS = {'full': Full(), 'window': Window(64), 'hybrid': Hybrid(64, KeyTokens(0.1))}
MODELS = {
  'tiny': presets.tiny_r1(),
  'smollm2, 4 of its layers': dataclasses.replace(
    presets.smollm2_135m(), layers=presets.smollm2_135m().layers[:4]
  ),
}


def patterned(cfg: ModelConfig, pattern: Pattern) -> ModelConfig:
  """The model with this pattern in all layers; a fifth of the tokens may be key tokens."""
  change = lambda l: dataclasses.replace(
    l, attention=dataclasses.replace(l.attention, pattern=pattern)
  )
  layers = tuple(map(change, cfg.layers))
  ids = tuple(range(0, cfg.vocab, 5))
  return dataclasses.replace(cfg, layers=layers, mtp=(), key_ids=ids, remat='none')


def step(cfg: ModelConfig, direct: bool | None, batch: int, memory: int) -> Callable[[], None]:
  """A compiled decode step at the last position, on a cache of its own; None: the model's choice."""
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


def paths(batch: int, lengths: list[int], rounds: int) -> None:
  """Tables, and the bars of sparse patterns on long memory."""
  print(f'\ndecode steps, {batch} rows; tokens/s')
  print('model                      memory  pattern        gather      pool  pool/gather')
  won = {}
  for name, base in MODELS.items():
    for memory in lengths:
      for what, pattern in PATTERNS.items():
        cfg = patterned(base, pattern)
        both = [step(cfg, direct, batch, memory) for direct in (False, True)]
        gather, read = (batch / s for s in fastest(both, rounds))
        won[name, memory, what] = read / gather
        print(
          f'{name:<26}{memory:>7}  {what:<10}{gather:>11.0f}{read:>10.0f}{read / gather:>13.2f}',
          flush=True,
        )


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


if __name__ == '__main__':
  paths(16, [512, 4096], 5)
