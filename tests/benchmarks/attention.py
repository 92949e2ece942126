"""Crossover curves of sparse attention on whatever device is there, forward and backward.

  python -m tests.benchmarks.attention [--longest=16384] [--png=attention.png]

dense     every earlier key: on CPU block by block as `Full` runs (no L × L scores), on TPU splash,
          on an NVIDIA GPU cuDNN through jax.nn.dot_product_attention
window    the last 64
hybrid    the last 64 and at most 256 key tokens before them, chosen, gathered, attended and merged:
          all that a layer does beside its projections; on accelerators also shares of the positions
blocks    natively sparse attention as published: summaries, 16 chosen blocks of 64, the last 512;
          scores, choice, laying out and summing up included

One row of 8 heads of 64 over 2 kv heads (accelerators: 32 over 8 of 128, bf16). Medians; patterns
take turns at each length. The temporaries are those of the compiled forward and backward.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from r1jax.eval import curves
from r1jax.kernels.attention.dense import dense_attention
from r1jax.kernels.attention.lists import Tokens
from r1jax.model import attend, nsa
from r1jax.model.config import Blocks, Hybrid, KeyTokens, Pattern, Window
from r1jax.model.keys import Marks
from r1jax.model.types import Place
from tests.benchmarks.bars import bar, machine

FEW = Hybrid(64, KeyTokens(share=0.1, slots=256))
TENTH = Hybrid(512, KeyTokens(share=0.1))
FIFTIETH = Hybrid(64, KeyTokens(share=0.02))


@dataclasses.dataclass(frozen=True)
class Case:
  """Shapes that a device is measured on."""

  heads: int
  kv_heads: int
  width: int
  dtype: str
  patterns: tuple[tuple[str, Pattern | None], ...]


PATTERNS = (('dense', None), ('window', Window(64)), ('hybrid', FEW), ('blocks', Blocks()))
CPU = Case(8, 2, 64, 'float32', PATTERNS)
WIDE = (('512 + 10 %', TENTH), ('64 + 2 %', FIFTIETH))
ACCELERATOR = Case(32, 8, 128, 'bfloat16', (*PATTERNS, *WIDE))


def operands(case: Case, length: int) -> tuple[tuple[jax.Array, ...], Place, Marks]:
  """q, k, v; where they stand; which are candidates."""
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = [(1, length, n, case.width) for n in (case.heads, case.kv_heads, case.kv_heads)]
  qkv = tuple(jax.random.normal(k, s, case.dtype) for k, s in zip(keys, shapes))
  index_BL = jnp.arange(length, dtype=jnp.int32)[None]
  candidates_BL = jnp.asarray(np.random.default_rng(0).random((1, length)) < 0.2)
  return qkv, Place(index_BL, jnp.ones_like(index_BL)), Marks(candidates_BL)


def attention(pattern: Pattern | None, place: Place, marks: Marks) -> Callable:
  """The layer's attention as a function of q, k, v."""
  tokens = Tokens(place.positions_BL, place.segments_BL)

  def run(q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array) -> jax.Array:
    scale = q_BLNH.shape[-1] ** -0.5
    if isinstance(pattern, Blocks):
      return blocks(q_BLNH, nsa.Pair(k_BLKH, v_BLKH), place, pattern, scale)
    if pattern is not None:
      return attend.over_batch(q_BLNH, k_BLKH, v_BLKH, place, pattern, marks, scale)
    if jax.default_backend() == 'gpu':
      return jax.nn.dot_product_attention(
        q_BLNH, k_BLKH, v_BLKH, scale=scale, is_causal=True, implementation='cudnn'
      )
    library = 'splash' if jax.default_backend() == 'tpu' else None
    return dense_attention(q_BLNH, k_BLKH, v_BLKH, tokens, scale, implementation=library)

  return run


def blocks(
  q_BLNH: jax.Array, pair: nsa.Pair, place: Place, pattern: Blocks, scale: float
) -> jax.Array:
  """The three branches over the same keys, with some weights to sum them up."""
  Z, H = pattern.compress, q_BLNH.shape[-1]
  shapes = (Z, H), (Z * H, H), (H, H)
  phi = nsa.Phi(*(0.02 * jax.random.normal(jax.random.key(0), s) for s in shapes))
  summarize = lambda raw, starts_BC, _: nsa.Pair(*(nsa.summed_up(x, starts_BC, phi) for x in raw))
  met = nsa.of_batch(nsa.Pairs(pair, pair, pair), place, pattern, summarize)
  return sum(nsa.branches(q_BLNH, met, pattern, scale))


def programs(case: Case, length: int) -> dict[tuple[str, str], tuple[Any, tuple]]:
  """(pattern, 'forward' | 'both') to a compiled program and what it takes."""
  qkv, place, marks = operands(case, length)
  made = {}
  for name, pattern in case.patterns:
    run = attention(pattern, place, marks)
    loss = lambda *qkv, run=run: run(*qkv).astype(jnp.float32).sum()
    for what, f in (('forward', run), ('both', jax.grad(loss, (0, 1, 2)))):
      made[name, what] = jax.jit(f).lower(*qkv).compile(), qkv
  return made


def measured(case: Case, length: int, rounds: int) -> dict[tuple[str, str], tuple[float, int]]:
  """Median seconds and bytes of temporaries."""
  made, seconds = programs(case, length), {}
  for turn in range(rounds + 1):
    for key, (program, qkv) in made.items():
      began = time.perf_counter()
      jax.block_until_ready(program(*qkv))
      if turn:
        seconds.setdefault(key, []).append(time.perf_counter() - began)
  temporaries = lambda p: p.memory_analysis().temp_size_in_bytes
  return {k: (statistics.median(s), temporaries(made[k][0])) for k, s in seconds.items()}


def draw(found: dict[int, dict[tuple[str, str], tuple[float, int]]], path: str) -> None:
  """Time against length, a panel forward and a panel with backward."""

  def panel(what: str, title: str) -> Callable[[Axes], None]:
    def one(axes: Axes) -> None:
      colours = (curves.BLACK, curves.VERMILLION, curves.BLUE, curves.GREEN, curves.PURPLE)
      names = [name for name, kind in next(iter(found.values())) if kind == what]
      for name, colour in zip(names, itertools.cycle(colours)):
        times = [by[name, what][0] * 1e3 for by in found.values()]
        axes.loglog(list(found), times, 'o-', color=colour, label=name)
      axes.set(xlabel='tokens', ylabel='milliseconds', title=title)
      axes.legend(fontsize=8, frameon=False)

    return one

  curves.draw([panel('forward', 'forward'), panel('both', 'with backward')], path, 'attention')


def main() -> None:
  """Measures, prints, draws."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  accelerated = jax.default_backend() != 'cpu'
  parser.add_argument('--longest', type=int, default=131072 if accelerated else 16384)
  parser.add_argument('--rounds', type=int, default=10 if accelerated else 3)
  parser.add_argument('--png', default='attention.png')
  args = parser.parse_args()
  case, lengths = ACCELERATOR if accelerated else CPU, [args.longest >> i for i in (4, 3, 2, 1, 0)]
  print(f'{machine()}\n{case.heads}/{case.kv_heads} heads of {case.width}, {case.dtype}')
  print('tokens  pattern       forward ms  with backward ms  temporaries MiB  over dense')
  found = {}
  for length in lengths:
    found[length] = by = measured(case, length, args.rounds)
    for name, _ in case.patterns:
      (forward, _), (both, temporaries) = by[name, 'forward'], by[name, 'both']
      ratios = [by['dense', w][0] / by[name, w][0] for w in ('forward', 'both')]
      print(
        f'{length:6}  {name:<12}{forward * 1e3:12.2f}{both * 1e3:18.2f}'
        f'{temporaries / 2**20:17.1f}  {ratios[0]:5.2f} {ratios[1]:5.2f}',
        flush=True,
      )
  draw(found, args.png)
  report(case, found, full=args.longest >= (131072 if accelerated else 16384))


def report(case: Case, found: dict[int, dict], full: bool) -> None:
  """The bars; on shorter rows than theirs they are not run."""
  longest, half = max(found), max(found) // 2

  def over_dense(name: str, what: str) -> float | None:
    if not full or (name, what) not in found[longest]:
      return None
    return found[longest]['dense', what][0] / found[longest][name, what][0]

  def growth(of: int) -> float | None:
    """Of twice the length over that of the length itself, hybrid with backward."""
    return (
      found[longest]['hybrid', 'both'][of] / found[half]['hybrid', 'both'][of] if full else None
    )

  bar('cpu_hybrid_over_dense_16k', over_dense('hybrid', 'forward') if case is CPU else None, '≥', 4)
  bar('hybrid_time_of_twice_the_length', growth(0), '≤', 2.3)
  bar('hybrid_memory_of_twice_the_length', growth(1), '≤', 2.1)
  for (name, _), forward, both in zip(WIDE, (4, 12), (3, 8)):
    label = 'gpu_' + name.replace(' + ', '_and_').replace(' %', '_percent')
    bar(f'{label}_forward', over_dense(name, 'forward'), '≥', forward)
    bar(f'{label}_with_backward', over_dense(name, 'both'), '≥', both)


if __name__ == '__main__':
  main()
