"""Tokens/s of rollout, SFT and GRPO at the quickstart's config, time split, decode temporaries.

  python -m tests.benchmarks.steps [--steps=8]

Padded tokens count (a batch is what is computed). Temporaries are XLA's own figure for one compiled
decode step with the cache donated, at a depth (24 layers) and length (2,048) where a copied cache
would show.
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart
from r1jax.core import config, tree
from r1jax.engine.generate import decode
from r1jax.model import cache as caches
from r1jax.model import presets
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.train import loop
from r1jax.train.experiment import Experiment
from r1jax.train.telemetry import read
from tests.benchmarks.bars import bar, machine


def temporaries(cfg, batch: int = 16, length: int = 2048) -> float:
  """Share of the cache that one decode step needs beside it."""
  model = Transformer(cfg)
  params = place.templates(None, place.abstract(model, dummy_inputs(cfg)))
  cache = jax.eval_shape(functools.partial(caches.empty, cfg, batch, length))
  ints = jax.ShapeDtypeStruct((batch,), jnp.int32)
  live = jax.ShapeDtypeStruct((batch,), jnp.bool_)
  step = jax.jit(lambda p, t, i, on, c: decode(p, cfg, t, i, on, c), donate_argnums=4)
  used = step.lower(params, ints, ints, live, cache).compile().memory_analysis()
  return used.temp_size_in_bytes / tree.bytes_of(cache)


def measured(steps: int) -> tuple[list[dict], Experiment]:
  """Rows of a short quickstart run, and its config."""
  exp = config.from_dict(Experiment, quickstart.get_config())
  stages = tuple(dataclasses.replace(s, steps=steps) for s in exp.stages)
  small = dataclasses.replace(exp.evaluation, problems=exp.evaluation.batch)
  exp = dataclasses.replace(exp, stages=stages, evaluation=small)
  with tempfile.TemporaryDirectory() as workdir:
    begin = time.monotonic()
    loop.train(exp, pathlib.Path(workdir))
    print(f'run of {steps} + {steps} steps: {time.monotonic() - begin:.0f} s')
    return read(workdir), exp


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=8)
  args = parser.parse_args()
  print(machine())
  rows, exp = measured(args.steps)
  sft, rl = exp.stages
  seconds = lambda stage, name: np.array(
    [r.get(f'time/{name}', 0.0) for r in rows if r['stage'] == stage][1:]
  )
  samples = rl.prompts * rl.algorithm.group
  width = rl.limits.prompt + rl.limits.completion
  print(f'{"":10} {"tokens/s":>10}  (median of {args.steps - 1} steps)')
  table = (
    ('sft', 'train', sft.lines * sft.length, f'training, {sft.lines} × {sft.length}'),
    ('rollout', 'rollout', samples * rl.limits.completion, f'decode slots, {samples} samples'),
    ('grpo', 'train', samples * (width - 1), f'training and scoring, {samples} × {width - 1}'),
  )
  for name, part, tokens, what in table:
    rate = tokens / np.median(seconds('sft' if name == 'sft' else 'grpo', part))
    print(f'{name:10} {rate:10.0f}  {what}')
  total = {
    n: sum(r.get(f'time/{n}', 0.0) for r in rows)
    for n in ('rollout', 'reward', 'train', 'compile', 'evaluate', 'checkpoint')
  }
  whole = sum(total.values())
  print(
    'time: '
    + ', '.join(f'{n} {100 * s / whole:.0f} %' for n, s in total.items())
    + f' of {whole:.0f} s\n'
  )
  deep = presets.tiny_r1(layers=24)
  flat = presets.tiny_dense(layers=24)
  bar('mla_decode_temporaries_over_cache', 100 * temporaries(deep), '<', 10, '%')
  bar('gqa_decode_temporaries_over_cache', 100 * temporaries(flat), '<', 10, '%')


if __name__ == '__main__':
  main()
