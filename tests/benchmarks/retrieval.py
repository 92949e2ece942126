"""What attention patterns find at which distance, and what key tokens are worth.

  python -m tests.benchmarks.retrieval [--only=full,top_k] [--seed=0] [--png=retrieval.png]

Full attention learns by configs/retrieval_tiny.py, hybrid attention by configs/retrieval_hybrid.py:
the same model and seed, its window narrow first, in fewer steps. The window alone has the hybrid's
stages without the key tokens; top-k attention has full attention's, and as many keys as a window.
All answer the same held-out questions. An answer counts where the whole worked completion is the
argmax under teacher forcing: that is when greedy decoding writes it, so no engine is needed. The
value is first written behind the 'k' of the thought, two tokens past the question: through n layers
a window of w sees what is at most n·(w − 1) tokens before that 'k', its `reach`. Near: within one
window. Far: beyond the reach, where a window alone can but guess.
"""

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from configs import retrieval_hybrid, retrieval_tiny
from r1jax.core.config import from_dict
from r1jax.core.interval import wilson
from r1jax.data import batch as batches
from r1jax.data.batch import Row
from r1jax.data.stream import Stream
from r1jax.eval import curves
from r1jax.model.config import Indexer, ModelConfig, TopK, Window
from r1jax.model.transformer import Transformer, dummy_inputs, head
from r1jax.optim import optimizer as optim
from r1jax.tasks import make as tasks
from r1jax.tasks.task import Example
from r1jax.tokenizers import chat
from r1jax.tokenizers import make as tokenizers
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train import supervised
from r1jax.train.experiment import Experiment, with_key_ids
from tests.benchmarks.bars import bar, machine

WINDOW = retrieval_hybrid.PATTERN.window
BEHIND = 2  # tokens from the end of the question to the 'k' at which the answer must be known
TOP_K = TopK(WINDOW, Indexer(heads=4, head=16, rope=8))
HELD_OUT = 1024


def experiments() -> dict[str, Experiment]:
  """What is compared, by name: a pattern with the stages by which it learns."""
  full = from_dict(Experiment, retrieval_tiny.get_config())
  hybrid = from_dict(Experiment, retrieval_hybrid.get_config())
  window = dataclasses.replace(hybrid, model=retrieval_tiny.model(Window(WINDOW)))
  top_k = dataclasses.replace(full, model=retrieval_tiny.model(TOP_K))
  return {'full': full, 'window': window, 'hybrid': hybrid, 'top_k': top_k}


def trained(exp: Experiment) -> Any:
  """Parameters after the stages of an experiment, without its loop and its evaluation."""
  tok, task = tokenizers.make(exp.tokenizer), tasks.make(exp.task)
  params = states.init_params(Transformer(exp.model), exp.seed, None, dummy_inputs(exp.model))
  for stage in exp.stages:
    optimizer = optim.make(stage.optimizer, params)
    state = states.fresh(params, optimizer, None)
    for part in supervised.segments(stage, exp.model):
      cfg, aux = part.model, part.auxiliary
      loss = functools.partial(supervised.loss, cfg=cfg, auxiliary=aux)
      count = functools.partial(supervised.denominators, cfg=cfg)
      update = jax.jit(steps.make(loss, count, optimizer, aux.gamma), donate_argnums=0)
      sources = supervised.opened(stage.data, part.shape.length, task, tok)
      stream = Stream(sources, stage.data, part.shape, exp.seed)
      for batch, _ in itertools.islice(stream, part.last - part.first):
        state, _ = update(state, batch)
    params = state.params
  return params


def right(
  params: Any, cfg: ModelConfig, tok: Tokenizer, examples: Sequence[Example], lines: int = 64
) -> np.ndarray:
  """Whether greedy decoding writes the worked completion, a value an example."""
  rows = [Row(*chat.render(tok, e.question, e.meta['needle'], e.answer)) for e in examples]
  length = max(len(row.tokens) for row in rows) - 1

  @jax.jit
  def score(params: Any, batch: batches.Batch) -> jax.Array:
    x_BLD = Transformer(cfg).apply({'params': params}, batch.inputs).x_BLD
    best_BL = jnp.argmax(x_BLD @ head(params, cfg), -1)
    return ((best_BL == batch.targets_BL) | (batch.weights_BL == 0)).all(-1)

  parts = (rows[i : i + lines] for i in range(0, len(rows), lines))
  made = (batches.batch([[row] for row in part], length, 0) for part in parts)
  return np.concatenate([np.asarray(score(params, b)) for b in made])


def by_window(right_E: np.ndarray, distances_E: np.ndarray) -> list[tuple[int, int]]:
  """(right, asked) for needles in the last window, in the one before it, …; the eighth and over."""
  at = np.minimum((distances_E - 1) // WINDOW, 7)
  return [(int(right_E[at == i].sum()), int((at == i).sum())) for i in range(8)]


def draw(found: dict[str, list[tuple[int, int]]], reach: int, path: str) -> None:
  """Accuracy against distance, a line a pattern, with 95 % intervals."""

  def panel(axes: Axes) -> None:
    colours = (curves.BLACK, curves.VERMILLION, curves.BLUE, curves.GREEN, curves.PURPLE)
    looks = itertools.cycle(zip(colours, (6, 4, 3, 2, 1.5)))
    # Lines that lie on each other stay visible: each is thinner than the one before it.
    for (name, bins), (colour, width) in zip(found.items(), looks):
      x = np.arange(1, len(bins) + 1) - 0.5
      low, high = zip(*(wilson(*b) for b in bins))
      rates = [r / n for r, n in bins]
      axes.plot(x, rates, 'o-', color=colour, label=name, lw=width, ms=2 * width)
      axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0.1, color=curves.GREY, linestyle=':', label='chance')
    axes.axvline((reach - BEHIND) / WINDOW, color=curves.GREY, linestyle='--', label='reach')
    axes.set(xlabel=f'distance, windows of {WINDOW}', ylabel='exact answers', ylim=(0, 1.03))
    axes.legend(fontsize=8, frameon=False)

  curves.draw([panel], path, 'retrieval by distance')


def main() -> None:
  """Trains, measures, draws."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  compared = experiments()
  parser.add_argument('--only', default=','.join(compared))
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--png', default='retrieval.png')
  args = parser.parse_args()
  only = args.only.split(',')
  if unknown := set(only) - set(compared):
    parser.error(f'--only={args.only}: no pattern {min(unknown)}; there are {", ".join(compared)}')
  full = compared['full']
  tok = tokenizers.make(full.tokenizer)
  examples = tasks.make(full.task).examples('eval', 0, HELD_OUT)
  distances_E = np.array([e.meta['distance'] for e in examples])
  reach = len(full.model.layers) * (WINDOW - 1)
  near_E, far_E = distances_E + BEHIND < WINDOW, distances_E + BEHIND > reach
  print(f'{machine()}\nreach {reach}; {near_E.sum()} near, {far_E.sum()} far of {HELD_OUT}')
  found, far = {}, {}
  for name in only:
    begin = time.monotonic()
    exp = with_key_ids(dataclasses.replace(compared[name], seed=args.seed))
    right_E = right(trained(exp), exp.model, tok, examples)
    found[name], far[name] = by_window(right_E, distances_E), 100 * right_E[far_E].mean()
    shares = ' '.join(f'{100 * r / n:5.1f}' for r, n in found[name])
    print(
      f'{name:10} {time.monotonic() - begin:4.0f} s  all {100 * right_E.mean():5.1f} %  near '
      f'{100 * right_E[near_E].mean():5.1f} %  far {far[name]:5.1f} %  by window {shares}',
      flush=True,
    )
  draw(found, reach, args.png)
  bar('full_attention_far', far.get('full'), '≥', 95, '%')
  bar('window_far', far.get('window'), '≤', 20, '%')
  for name in ('hybrid', 'top_k'):
    behind = far['full'] - far[name] if {'full', name} <= far.keys() else None
    bar(f'{name}_far_behind_full', behind, '≤', 2, ' points')


if __name__ == '__main__':
  main()
