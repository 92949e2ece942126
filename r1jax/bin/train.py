"""Trains.

    python -m r1jax.bin.train --config=configs/quickstart.py --workdir=runs/quickstart

--config.PATH=VALUE overrides a field of the config.
"""

import pathlib

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CONFIG = flags.define_config('configs/quickstart.py')
WORKDIR = absl_flags.DEFINE_string(
  'workdir',
  'runs/quickstart',
  'Folder for checkpoints, metrics and the report; started again, the run goes on.',
)


def main(overrides: flags.Overrides) -> None:
  """Runs the experiment and prints its table."""
  from r1jax.eval import report
  from r1jax.train.experiment import Experiment
  from r1jax.train.loop import train

  exp = flags.load_config(Experiment, CONFIG.value, overrides)
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(WORKDIR.value)
  print(
    f'{exp.name}: seed {exp.seed}, stages {", ".join(s.name for s in exp.stages)}, '
    f'workdir {workdir}',
    flush=True,
  )
  summary = train(exp, workdir)
  print('\n' + report.table(summary['evaluations']))
  print(
    f'\n{workdir}/summary.json, {workdir}/report.png, {workdir}/metrics.jsonl, '
    f'{workdir}/tb (TensorBoard)'
  )


if __name__ == '__main__':
  flags.run(main)
