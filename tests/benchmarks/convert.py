"""Conversion of a DeepSeek-V3-shaped checkpoint: its speed beside Orbax's own, its peak memory.

  python -m tests.benchmarks.convert [--gib=10] [--folder=/tmp] [--workers=2]

Source: random fp8 weights with scales of 128 x 128, in shards; V3's widths (embed 7168, expert
2048, 128 heads, latents 1536 and 512, a dense layer, the prediction module), fewer experts (16) and
words, and as many layers as give --gib GiB of bfloat16. It is converted by the binary in a process
of its own, whose peak memory is the kernel's VmHWM; then a model of one layer more than none, which
must need as much memory. Orbax: PyTreeCheckpointHandler as the store drives it saves random arrays
of the same leaves from memory, in pieces of a few GiB, before and after the conversion. Needs 2.6
times --gib of disk.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from r1jax.checkpoint.public import families, names, options
from r1jax.checkpoint.public.safetensors import Writer
from r1jax.checkpoint.store import Store
from tests.benchmarks.bars import bar, machine
from tests.published import chat_folder

GIB = 1 << 30
PIECE = 3 * GIB  # bytes saved at a time from memory
FP8, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
KEPT = ('norm', 'embed_tokens', 'lm_head', 'mlp.gate.', 'eh_proj')  # not fp8, as published
CONFIG = {
  'architectures': ['DeepseekV3ForCausalLM'], 'model_type': 'deepseek_v3', 'hidden_act': 'silu',
  'vocab_size': 16160, 'hidden_size': 7168, 'intermediate_size': 18432,
  'moe_intermediate_size': 2048, 'num_attention_heads': 128, 'num_key_value_heads': 128,
  'q_lora_rank': 1536, 'kv_lora_rank': 512, 'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64,
  'v_head_dim': 128, 'first_k_dense_replace': 1, 'moe_layer_freq': 1, 'n_routed_experts': 16,
  'n_shared_experts': 1, 'num_experts_per_tok': 4, 'n_group': 4, 'topk_group': 2,
  'routed_scaling_factor': 2.5, 'norm_topk_prob': True, 'scoring_func': 'sigmoid',
  'topk_method': 'noaux_tc', 'num_nextn_predict_layers': 1, 'rms_norm_eps': 1e-6,
  'rope_theta': 10000, 'max_position_embeddings': 4096, 'tie_word_embeddings': False,
  'attention_bias': False, 'torch_dtype': 'bfloat16',
  'quantization_config': {
    'quant_method': 'fp8', 'fmt': 'e4m3', 'activation_scheme': 'dynamic',
    'weight_block_size': [128, 128],
  },
}  # fmt: skip


def publish(folder: pathlib.Path, layers: int) -> list[tuple[int, ...]]:
  """Writes a model with so many layers of experts; gives the shapes of our leaves."""
  table = table_of(folder, layers)
  declared, noise = {}, np.random.default_rng(0).integers(0, 256, 1 << 27, dtype=np.uint8)
  noise[noise & 0x7F == 0x7F] = 0  # these are NaN
  for leaf in table.values():
    for name in leaf.names.values():
      shape = leaf.layout.theirs
      quantized = len(shape) == 2 and not any(part in name for part in KEPT)
      declared[name] = (FP8 if quantized else BF16, shape)
      if quantized:
        declared[f'{name}_scale_inv'] = (np.dtype('float32'), tuple(-(-n // 128) for n in shape))
  with Writer(folder, declared, shard_bytes=2 * GIB) as writer:
    for i, (name, (dtype, shape)) in enumerate(declared.items()):
      if dtype == FP8:
        writer.write(
          name, noise[i * 4096 % (1 << 20) :][: math.prod(shape)].reshape(shape).view(FP8)
        )
      else:
        writer.write(name, np.full(shape, 1 + i % 7, np.float32).astype(dtype))
  return [leaf.shape for leaf in table.values()]


def table_of(folder: pathlib.Path, layers: int) -> dict[str, names.Leaf]:
  """Our leaves of such a model; writes its config.json."""
  folder.mkdir(exist_ok=True)
  chat_folder(folder, ['a b'], vocab=260)
  config = CONFIG | {'num_hidden_layers': layers + CONFIG['first_k_dense_replace']}
  (folder / 'config.json').write_text(json.dumps(config))
  public = families.parse(options.load(folder))
  return names.table(public.model, public.router_bias)


def size(shapes: list[tuple[int, ...]]) -> int:
  """Bytes in bfloat16."""
  return 2 * sum(math.prod(shape) for shape in shapes)


def layers_for(folder: pathlib.Path, nbytes: float) -> int:
  """How many layers of experts give so many bytes."""
  sizes = (size([x.shape for x in table_of(folder, n).values()]) for n in itertools.count(1))
  return next(n for n, found in enumerate(sizes, start=1) if found >= nbytes)


def convert(source: pathlib.Path, target: pathlib.Path, workers: int) -> tuple[float, int]:
  """(seconds, peak bytes) of the binary."""
  os.sync()
  command = [sys.executable, '-m', 'r1jax.bin.convert', f'--source={source}', f'--target={target}']
  begin, peak = time.monotonic(), 0
  process = subprocess.Popen([*command, f'--workers={workers}'], stderr=subprocess.DEVNULL)
  status = pathlib.Path(f'/proc/{process.pid}/status')
  while process.poll() is None:  # the kernel keeps the maximum; the last look sees it
    found = re.search(r'VmHWM:\s+(\d+) kB', status.read_text())
    peak = max(peak, 1024 * int(found[1]) if found else 0)
    time.sleep(0.05)
  seconds = time.monotonic() - begin
  if process.returncode:
    raise RuntimeError(f'{" ".join(command)} ended with {process.returncode}')
  return seconds, peak


def save(folder: pathlib.Path, shapes: list[tuple[int, ...]]) -> float:
  """Seconds that Orbax takes for the same arrays, from memory; all of it is on the disk then."""
  rng, seconds, piece = np.random.default_rng(1), 0.0, []
  for i, shape in enumerate(shapes):
    piece.append(shape)
    if size(piece) >= PIECE or i == len(shapes) - 1:
      tree = {f'{j}': random_bfloat16(rng, shape) for j, shape in enumerate(piece)}
      path = epath.Path(folder / f'{i}')
      path.mkdir(parents=True)
      os.sync()
      begin = time.monotonic()
      orbax = ocp.PyTreeCheckpointHandler(use_compression=False)
      for commit in asyncio.run(orbax.async_save(path, args=ocp.args.PyTreeSave(tree))):
        commit.result()
      orbax.finalize(path)
      seconds += time.monotonic() - begin
      piece = []
  shutil.rmtree(folder)
  return seconds


def random_bfloat16(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
  """Bits that no file system finds equal."""
  noise = rng.integers(0, 1 << 16, 1 << 22, dtype=np.uint16)
  return jax.device_put(np.resize(noise, shape).view(BF16)).block_until_ready()


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gib', type=float, default=10)
  parser.add_argument('--folder', default=None)
  parser.add_argument('--workers', type=int, default=2)
  args = parser.parse_args()
  print(machine())
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    root = pathlib.Path(folder)
    publish(root / 'small', 1)
    _, least = convert(root / 'small', root / 'small_out', args.workers)
    shutil.rmtree(root / 'small')
    shutil.rmtree(root / 'small_out')
    layers = layers_for(root / 'config', args.gib * GIB)
    shapes = publish(root / 'public', layers)
    print(f'{layers} layers of experts, {size(shapes) / GIB:.2f} GiB in bfloat16')
    before = save(root / 'saved', shapes)
    seconds, peak = convert(root / 'public', root / 'out', args.workers)
    held = Store(root / 'out' / 'checkpoints').describe()
    shutil.rmtree(root / 'out')
    after = save(root / 'saved', shapes)
  assert len(held) == len(shapes)
  rate = lambda s: size(shapes) / s / 1e9
  print(
    f'conversion {seconds:.1f} s, {rate(seconds):.2f} GB/s; Orbax {rate(before):.2f} GB/s before, '
    f'{rate(after):.2f} after; peak {peak / GIB:.2f} GiB, with one layer {least / GIB:.2f}'
  )
  bar('convert_speed', 100 * (before + after) / 2 / seconds, '≥', 60, ' %')
  bar('convert_peak_memory', peak / GIB, '≤', 3, ' GiB')
  bar('convert_peak_memory_growth', 100 * (peak / least - 1), '≤', 15, ' %')


if __name__ == '__main__':
  main()
