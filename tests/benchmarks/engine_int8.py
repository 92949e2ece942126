"""int8 pages beside full ones: bytes a token, perplexity of SmolLM2, accuracy of a tiny model.

  python -m tests.benchmarks.engine --only=int8 [--checkpoint=runs/quickstart]

perplexity  12 windows of 2,048 tokens out of the longer docstrings of Python's standard library, in
            chunks of 512 through pages: a chunk's own keys and values are read back from them too.
accuracy    1,024 held-out problems, greedy, the same checkpoint and engine with both kinds.
"""

import argparse
import ast
import dataclasses
import functools
import math
import pathlib
import platform
import sysconfig
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.engine.batch import Batches, Paged
from r1jax.eval import evaluate as evaluation
from r1jax.kernels.logprob import likelihoods
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import cache as caches
from r1jax.model import presets, transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer
from r1jax.rewards.pool import Pool
from r1jax.tasks.make import make as make_task
from r1jax.tokenizers.tokenizer import Tokenizer
from r1jax.train.restored import Restored
from tests.benchmarks.engine import Found, trained

PAGE, CHUNK, WINDOW, WINDOWS = 16, 512, 2048, 12
PROBLEMS = 1024


@functools.cache
def docstrings() -> tuple[str, ...]:
  """Of the standard library's files those of 400 characters or more that are mostly words."""
  found = []
  for path in sorted(pathlib.Path(sysconfig.get_path('stdlib')).glob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        text = ast.get_docstring(node) or ''
        words = sum(c.isalpha() or c == ' ' for c in text)
        found += [text] if len(text) >= 400 and words >= 0.9 * len(text) else []
  return tuple(found)


def windows(tok: Tokenizer) -> np.ndarray:
  """Their tokens [N, WINDOW + 1], each window beside the last token of the one before it."""
  text = '\n\n'.join(docstrings())
  ids = np.array(tok.encode(text), np.int32)
  known = f'{len(text)} characters, crc32 {zlib.crc32(text.encode()):08x}'
  print(f'docstrings of Python {platform.python_version()}: {known}, {len(ids)} tokens')
  return np.stack([ids[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(WINDOWS)])


def perplexity(cfg: ModelConfig, params: Any, rows_NW: np.ndarray, stored: str | None) -> float:
  """exp of the mean −log p of all tokens but the first of each row, by way of pages."""

  def chunk(params: Any, cache: tuple, tokens_BL: jax.Array, start: jax.Array) -> tuple:
    L = CHUNK
    place = (start + jnp.arange(L))[None], jnp.ones((1, L), jnp.int32)
    inputs = Inputs(tokens_BL[:, :-1], *place, table_BT=table_BT)
    out = Transformer(cfg).apply({'params': params}, inputs, cache)
    made = likelihoods(out.x_BLD, transformer.head(params, cfg), tokens_BL[:, 1:], chunk=256)
    return out.cache, made.logp.sum()

  pages = WINDOW // PAGE
  table_BT = jnp.asarray(np.random.default_rng(0).permutation(pages)[None], jnp.int32)
  step = jax.jit(chunk, donate_argnums=1)
  cache, total = caches.paged(cfg, pages, PAGE, stored), 0.0
  for row_W in rows_NW:
    for start in range(0, WINDOW, CHUNK):
      cache, logp = step(params, cache, row_W[None, start : start + CHUNK + 1], np.int32(start))
      total += float(logp)
  return math.exp(-total / (len(rows_NW) * WINDOW))


def accuracy(model: Restored, stored: str | None, grade: Callable) -> float:
  """Share of the held-out problems that greedy decoding solves."""
  exp = model.exp
  spec = dataclasses.replace(exp.evaluation, problems=PROBLEMS, passes=())
  engine = Batches(Paged(page=PAGE, stored=stored), exp.model, model.tok.stops)
  examples = evaluation.held_out(make_task(exp.task), model.tok, spec)
  scored = evaluation.run(
    engine, model.params, model.tok, examples, grade, spec,
    samples=1, sampling=Sampling(temperature=0.0),
  )  # fmt: skip
  return scored.correct / scored.samples


def sizes() -> Found:
  """Bytes a token in int8 over those in bf16; beside the dtype that each model runs in here."""
  for name in ('deepseek_v3', 'smollm2_135m'):
    cfg = getattr(presets, name)()
    size = {kind: caches.bytes_a_token(cfg, kind) for kind in ('int8', 'bfloat16', cfg.dtype)}
    told = ', '.join(f'{k} {n:,} ({size["int8"] / n:.3f})' for k, n in size.items())
    print(f'{name}: bytes a token (and int8 over them) {told}; runs in {cfg.dtype} here')
    brief = name.removesuffix('_135m')
    yield f'int8_bytes_over_bf16_{brief}', size['int8'] / size['bfloat16']
    if cfg.dtype == 'float32':
      yield f'int8_bytes_over_float32_{brief}', size['int8'] / size['float32']


def run(args: argparse.Namespace, smollm2: Callable[[], Restored]) -> Found:
  """The three bars."""
  yield from sizes()
  model = trained(args)
  if model is not None:
    exp = model.exp
    build = functools.partial(make_task, exp.task)
    with Pool(build, exp.verifier.workers, exp.verifier.seconds) as pool:
      full, small = (100 * accuracy(model, kind, pool.map) for kind in (None, 'int8'))
    print(f'{exp.name} step {model.step}, greedy: full pages {full:.2f} %, int8 {small:.2f} %')
    yield 'int8_accuracy_change_points', abs(small - full)
  model = smollm2()
  rows_NW = windows(model.tok)
  full, small = (perplexity(model.exp.model, model.params, rows_NW, k) for k in (None, 'int8'))
  print(f'perplexity of {WINDOWS * WINDOW} tokens: full pages {full:.4f}, int8 {small:.4f}')
  yield 'int8_perplexity_change_percent', 100 * abs(small / full - 1)
