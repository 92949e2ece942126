"""Adds the adapters of a LoRA checkpoint to its base: an ordinary checkpoint of the same function.

python -m r1jax.bin.merge --checkpoint=runs/lora --target=runs/merged
python -m r1jax.bin.convert --source=runs/merged --target=exported --to=safetensors

What it writes is a workdir for generate, evaluate, convert and train --config.init.
"""

import pathlib

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CHECKPOINT = absl_flags.DEFINE_string(
  'checkpoint', None, 'A LoRA workdir, its checkpoints folder, or one step of it.', required=True
)
TARGET = absl_flags.DEFINE_string('target', None, 'The workdir to write.', required=True)


def main(overrides: flags.Overrides) -> None:
  """Merges, and says what with what."""
  from r1jax.train import merged

  flags.refuse(overrides)
  logging.set_verbosity(logging.WARNING)
  target = pathlib.Path(TARGET.value).expanduser()
  print(merged.write(CHECKPOINT.value, target))


if __name__ == '__main__':
  flags.run(main)
