"""Drafts at batch 1: a tiny model's own prediction module, and n-grams under SmolLM2.

  python -m tests.benchmarks.engine --only=drafts [--rounds=3] [--checkpoint=runs/quickstart]

mtp     64 held-out problems one after another, greedy and at temperature 1, with 0 … 4 drafts a
        round in turn. Tokens/s of the whole call, prompts and host included. The bar is that of the
        best number of drafts.
ngram   SmolLM2 is asked to repeat paragraphs word by word; greedy. No bar.

Drafts change no token; what they do to rounding may, and the share of equal completions is printed.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from r1jax.core import prng
from r1jax.engine.continuous import Continuous
from r1jax.engine.drafts import Drafting, Modules, NGram
from r1jax.engine.plan import Config
from r1jax.engine.requests import Request
from r1jax.engine.sampling import RequestSampling
from r1jax.tasks.make import make as make_task
from r1jax.train.restored import Restored
from tests.benchmarks.engine import GREEDY, SEED, Found, serve, timed, trained
from tests.benchmarks.engine_int8 import docstrings

PAGE, PROBLEMS, PARAGRAPHS, COPIED = 16, 64, 4, 64
COUNTS = (1, 2, 3, 4)
NGRAMS = (NGram(count=4, longest=3), NGram(count=8, longest=3))


def engines(
  model: Restored, longest: int, draftings: tuple[Drafting, ...]
) -> dict[Drafting | None, Continuous]:
  """One for each, and one without drafts; a burst is as long as a completion may be."""
  config = Config(1, -(-longest // PAGE), PAGE, longest, burst=longest)
  cfg, stops = model.exp.model, model.tok.stops
  return {d: Continuous(cfg, stops, config, drafting=d) for d in (None, *draftings)}


def beside(sides: dict, params: Any, asked: list[Request], rounds: int) -> float:
  """How many times the tokens/s without drafts the best gives; prints all and their acceptance."""
  done, rate = {}, {}

  def go(d: Drafting | None) -> None:
    done[d] = serve(sides[d], params, asked)

  before = {d: engine.counts.copy() for d, engine in sides.items()}
  took = timed({d: functools.partial(go, d) for d in sides}, rounds)
  for d, engine in sides.items():
    rate[d] = sum(len(c.tokens) for c in done[d]) / took[d]
    same = np.mean([np.array_equal(a.tokens, b.tokens) for a, b in zip(done[d], done[None])])
    counts = engine.counts - before[d]
    kept = counts['accepted'] / max(1, counts['drafted'])
    print(
      f'  {d or "no drafts"!s:<26}{rate[d]:8.0f} tokens/s, {rate[d] / rate[None]:.2f} '
      f'times; kept {100 * kept:.0f} % of drafts; {100 * same:.0f} % of completions the same',
      flush=True,
    )
  return max(r for d, r in rate.items() if d) / rate[None]


def problems(model: Restored, sampling: RequestSampling) -> list[Request]:
  """Held-out problems of the checkpoint's task."""
  limit = model.exp.evaluation.limits.completion
  examples = make_task(model.exp.task).examples('eval', 0, PROBLEMS)
  key_B = prng.fold_rows(jax.random.key(0), np.arange(PROBLEMS))
  seeds = np.asarray(jax.random.key_data(key_B)).tolist()
  prompt = lambda e: tuple(model.tok.prompt(e.question, e.system))
  return [Request(prompt(e), limit, tuple(s), sampling) for e, s in zip(examples, seeds)]


def copies(model: Restored) -> list[Request]:
  """Requests to repeat a paragraph."""
  ask = 'Repeat the following text word by word.\n\n'
  paragraphs = [d[:400] for d in docstrings()[:: len(docstrings()) // PARAGRAPHS]][:PARAGRAPHS]
  return [Request(tuple(model.tok.prompt(ask + p)), COPIED, SEED, GREEDY) for p in paragraphs]


def run(args: argparse.Namespace, smollm2: Callable[[], Restored]) -> Found:
  """The two bars, and n-grams."""
  model = trained(args)
  if model is not None:
    limits = model.exp.evaluation.limits
    sides = engines(model, limits.prompt + limits.completion, tuple(map(Modules, COUNTS)))
    for name, sampling in (('greedy', GREEDY), ('temperature_1', RequestSampling())):
      print(f'{model.exp.name} step {model.step}, batch 1, {name}:')
      gain = beside(sides, model.params, problems(model, sampling), args.rounds)
      yield f'mtp_drafts_over_plain_{name}', gain
  model = smollm2()
  asked = copies(model)
  print('SmolLM2 repeats paragraphs, batch 1, greedy:')
  sides = engines(model, max(len(r.prompt) for r in asked) + COPIED, NGRAMS)
  beside(sides, model.params, asked, args.rounds)
