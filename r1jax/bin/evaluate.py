"""Evaluates a checkpoint on held-out problems.

python -m r1jax.bin.evaluate --checkpoint=runs/quickstart
"""

import json
import pathlib

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CHECKPOINT = absl_flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step of it.', required=True
)
OUT = absl_flags.DEFINE_string(
  'out', None, 'File for the figures as JSON; printed only if not given.'
)
SHOW = absl_flags.DEFINE_integer('show', 3, 'Transcripts to print.')


def main(overrides: flags.Overrides) -> None:
  """Restores, evaluates, prints the table and transcripts; --config.… overrides apply."""
  from r1jax.core import files
  from r1jax.eval import report
  from r1jax.train import restored

  logging.set_verbosity(logging.WARNING)
  model = restored.load(CHECKPOINT.value, overrides)
  figures = restored.evaluate(model)
  print(report.table([figures]))
  for s in figures['shown'][: SHOW.value]:
    print(f'\n{s["question"]}\n{s["completion"]}\n→ {s["outcome"]}')
  if OUT.value:
    files.write_json(pathlib.Path(OUT.value), figures)
  else:
    brief = {k: v for k, v in figures.items() if k != 'shown'}
    print('\n' + json.dumps(files.plain(brief)))


if __name__ == '__main__':
  flags.run(main)
