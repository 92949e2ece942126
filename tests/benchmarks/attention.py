"""Crossover curves of sparse attention on whatever device is there, forward and backward.

  python -m tests.benchmarks.attention [--longest=16384] [--only=dense,hybrid] [--unproven]

Our kernels are measured where they serve unasked; --unproven: wherever there are any.

dense     every earlier key: on CPU block by block as `Full` runs (no L × L scores), on TPU splash,
          on an NVIDIA GPU cuDNN through jax.nn.dot_product_attention
window    the last 64
hybrid    the last 64 and at most 256 key tokens before them, chosen, gathered, attended and merged:
          all that a layer does beside its projections; on accelerators also shares of the positions
blocks    natively sparse attention as published: summaries, 16 chosen blocks of 64, the last 512;
          scores, choice, laying out and summing up included
MLA       latent attention, its keys and values made of the latents (its queries turned to them and
          sums back): over all earlier keys, and over those that an indexer scores highest, scores
          and choice included, not the loss by which the indexer learns

One row of 8 heads of 64 over 2 kv heads (accelerators: 32 over 8 of 128, bf16); MLA has 8 heads of
32 + 16 over latents of 64 and 256 keys (accelerators: V3.2's 128 heads and 2,048 keys). Medians;
patterns take turns at each length. The temporaries are those of the compiled forward and backward.
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
from r1jax.kernels import platform
from r1jax.kernels.attention.dense import dense_attention
from r1jax.kernels.attention.lists import Tokens
from r1jax.model import attend, indexer, mla, nsa
from r1jax.model.config import (
  MLA,
  Blocks,
  Full,
  Hybrid,
  Indexer,
  KeyTokens,
  Pattern,
  TopK,
  Window,
)
from r1jax.model.keys import Marks
from r1jax.model.rope import softmax_scale
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
  mla: MLA | None
  mla_trains: int  # the longest row whose backward fits into memory

  @property
  def names(self) -> tuple[str, ...]:
    """What is measured, each family's dense attention first."""
    return (*(name for name, _ in self.patterns), *(LATENTS if self.mla else ()))


LATENTS = ('MLA dense', 'MLA top-k')
PATTERNS = (('dense', None), ('window', Window(64)), ('hybrid', FEW), ('blocks', Blocks()))
LATENT = MLA(8, 32, 16, 32, 64, pattern=TopK(256, Indexer(4, 32, 16)))
CPU = Case(8, 2, 64, 'float32', PATTERNS, LATENT, 16384)
WIDE = (('512 + 10 %', TENTH), ('64 + 2 %', FIFTIETH))
V32 = MLA(128, 128, 64, 128, 512, pattern=TopK())
ACCELERATOR = Case(32, 8, 128, 'bfloat16', (*PATTERNS, *WIDE), V32, 65536)


def baseline(name: str) -> str:
  """The dense attention that a name is compared with."""
  return 'MLA dense' if name.startswith('MLA') else 'dense'


def drawn(dtype: str, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """Normal numbers."""
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes))


def operands(case: Case, length: int) -> tuple[tuple[jax.Array, ...], Place, Marks]:
  """q, k, v; where they stand; which are candidates."""
  shapes = [(1, length, n, case.width) for n in (case.heads, case.kv_heads, case.kv_heads)]
  candidates_BL = jnp.asarray(np.random.default_rng(0).random((1, length)) < 0.2)
  return drawn(case.dtype, *shapes), row(length), Marks(candidates_BL)


def row(length: int) -> Place:
  """One sequence."""
  index_BL = jnp.arange(length, dtype=jnp.int32)[None]
  return Place(index_BL, jnp.ones_like(index_BL))


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


def latent(case: Case, length: int) -> tuple[tuple[Any, ...], indexer.Marks]:
  """Queries, latents with rotated keys and what makes keys and values; the indexer's arrays."""
  c, i = case.mla, case.mla.pattern.indexer
  ups = [(c.kv_latent, c.heads, c.nope), (c.kv_latent, c.heads, c.value)]
  nope, rope, kv, *up = drawn(
    case.dtype, (1, length, c.heads, c.nope), (1, length, c.heads, c.rope),
    (1, length, c.kv_latent + c.rope), *ups,
  )  # fmt: skip
  up = mla.Up(*(x * c.kv_latent**-0.5 for x in up))
  told = drawn(case.dtype, (1, length, i.heads, i.head), (1, length, i.head), (1, length, i.heads))
  return (mla.Query(nope, rope), kv, up), indexer.Marks(*told)


def latent_attention(case: Case, name: str, place: Place) -> Callable:
  """MLA's as a function of queries, latents, ups and what the indexer made."""
  sparse = case.mla
  full = dataclasses.replace(sparse, pattern=Full())

  def top_k(q: mla.Query, kv_BLC: jax.Array, up: mla.Up, marks: indexer.Marks) -> jax.Array:
    return mla.over_itself(sparse, q, kv_BLC, up, place, Marks(), marks, None)[0]

  def dense(q: mla.Query, kv_BLC: jax.Array, up: mla.Up, _: indexer.Marks) -> jax.Array:
    if jax.default_backend() != 'gpu':
      return mla.over_itself(full, q, kv_BLC, up, place, Marks(), None, None)[0]
    k_BLNH, v_BLNV = mla.keys_and_values(kv_BLC, *up)
    wider = ((0, 0),) * 3 + ((0, full.nope + full.rope - full.value),)  # cuDNN: one width for all
    o_BLNH = jax.nn.dot_product_attention(
      jnp.concatenate(q, -1), k_BLNH, jnp.pad(v_BLNV, wider),
      scale=softmax_scale(full.rotary, full.nope + full.rope), is_causal=True,
      implementation='cudnn',
    )  # fmt: skip
    return o_BLNH[..., : full.value]

  return top_k if name == 'MLA top-k' else dense


def programs(case: Case, length: int) -> dict[tuple[str, str], tuple[Any, tuple]]:
  """(name, 'forward' | 'both') to a compiled program and what it takes."""
  qkv, place, marks = operands(case, length)
  runs = {name: (attention(p, place, marks), qkv) for name, p in case.patterns}
  if case.mla:
    arrays, marks = latent(case, length)
    runs |= {n: (latent_attention(case, n, place), (*arrays, marks)) for n in LATENTS}
  made = {}
  for name, (run, told) in runs.items():
    loss = lambda *told, run=run: run(*told).astype(jnp.float32).sum()
    made[name, 'forward'] = jax.jit(run).lower(*told).compile(), told
    if name in dict(case.patterns) or length <= case.mla_trains:
      made[name, 'both'] = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*told).compile(), told
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
        times = {n: by[name, what][0] * 1e3 for n, by in found.items() if (name, what) in by}
        style = 's--' if name.startswith('MLA') else 'o-'
        axes.loglog(list(times), list(times.values()), style, color=colour, label=name)
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
  parser.add_argument('--unproven', action='store_true')
  known = (ACCELERATOR if accelerated else CPU).names
  parser.add_argument('--only', default=','.join(known), help='names of rows, or MLA')
  args = parser.parse_args()
  if args.unproven:
    platform.PROVEN |= {(op, platform.kernels()) for op in ('attention', 'selected')}
  case, lengths = ACCELERATOR if accelerated else CPU, [args.longest >> i for i in (4, 3, 2, 1, 0)]
  only = args.only.split(',')
  if unknown := set(only) - {*known, 'MLA'}:
    parser.error(f'--only={args.only}: no {min(unknown)}; there are {", ".join(known)} and MLA')
  patterns = tuple((name, p) for name, p in case.patterns if name in ('dense', *only))
  latents = case.mla if any(name.startswith('MLA') for name in only) else None
  case = dataclasses.replace(case, patterns=patterns, mla=latents)
  print(f'{machine()}\n{case.heads}/{case.kv_heads} heads of {case.width}, {case.dtype}')
  found = {}
  for length in lengths:
    found[length] = measured(case, length, args.rounds)
    table(case, length, found[length])
  draw(found, args.png)
  report(found, full=args.longest >= (131072 if accelerated else 16384))


def table(case: Case, length: int, by: dict[tuple[str, str], tuple[float, int]]) -> None:
  """A row a pattern: times, temporaries, how many times faster than dense attention."""
  print(f'{length} tokens: pattern, forward ms, with backward ms, temporaries MiB, over dense')
  for name in case.names:
    kinds = [kind for kind in ('forward', 'both') if (name, kind) in by]
    times = [f'{by[name, kind][0] * 1e3:12.3f}' for kind in kinds]
    ratios = [f'{by[baseline(name), kind][0] / by[name, kind][0]:6.2f}' for kind in kinds]
    temporaries = f'{by[name, kinds[-1]][1] / 2**20:12.3f}'
    print(f'  {name:<12}', *times, temporaries, *ratios, flush=True)


def report(found: dict[int, dict], full: bool) -> None:
  """The bars; on shorter rows than theirs they are not run."""
  longest, half = max(found), max(found) // 2

  def over_dense(name: str, what: str, length: int = longest) -> float | None:
    by = found.get(length, {})
    if not full or (name, what) not in by:
      return None
    return by[baseline(name), what][0] / by[name, what][0]

  def growth(of: int) -> float | None:
    """Of twice the length over that of the length itself, hybrid with backward."""
    if not full or ('hybrid', 'both') not in found[longest]:
      return None
    return found[longest]['hybrid', 'both'][of] / found[half]['hybrid', 'both'][of]

  on_cpu = jax.default_backend() == 'cpu'
  ours = over_dense('hybrid', 'forward') if on_cpu else None
  bar('cpu_hybrid_over_dense_16k', ours, '≥', 4)
  bar('hybrid_time_of_twice_the_length', growth(0), '≤', 2.3)
  bar('hybrid_memory_of_twice_the_length', growth(1), '≤', 2.1)
  for (name, _), forward, both in zip(WIDE, (4, 12), (3, 8)):
    label = 'gpu_' + name.replace(' + ', '_and_').replace(' %', '_percent')
    bar(f'{label}_forward', over_dense(name, 'forward'), '≥', forward)
    bar(f'{label}_with_backward', over_dense(name, 'both'), '≥', both)
  on_gpu = lambda *asked: None if on_cpu else over_dense(*asked)
  bar('gpu_mla_top_k_forward_32k', on_gpu('MLA top-k', 'forward', 32768), '≥', 1)
  bar('gpu_mla_top_k_forward_64k', on_gpu('MLA top-k', 'forward', 65536), '≥', 1.7)
  bar('gpu_mla_top_k_forward_128k', on_gpu('MLA top-k', 'forward', 131072), '≥', 2.2)
  bar('gpu_mla_top_k_with_backward_64k', on_gpu('MLA top-k', 'both', 65536), '≥', 3)
  bar('gpu_blocks_forward_64k', on_gpu('blocks', 'forward', 65536), '≥', 4)


if __name__ == '__main__':
  main()
