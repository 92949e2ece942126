"""Trains.

    python -m r1jax.bin.train --config=configs/quickstart.py --workdir=runs/quickstart

--config.PATH=VALUE overrides a field of the config. SIGTERM and Ctrl-C save and stop; the same
command goes on from there. Several processes, one a host (launch/processes.sh starts them on one
machine):

    python -m r1jax.bin.train --coordinator=HOST:PORT --processes=4 --process=0 …
"""

import pathlib
import sys

from absl import flags as absl_flags
from absl import logging

from r1jax.bin import flags

CONFIG = flags.define_config('configs/quickstart.py')
WORKDIR = absl_flags.DEFINE_string(
  'workdir',
  'runs/quickstart',
  'Folder for checkpoints, metrics and the report; started again, the run goes on.',
)
PROCESSES = flags.define_processes()
PROFILE = absl_flags.DEFINE_string(
  'profile',
  None,
  "Steps to trace, 'START:COUNT', of the first stage that reaches them; into WORKDIR/profile, for "
  'XProf or Perfetto.',
)


def main(overrides: flags.Overrides) -> None:
  """Runs the experiment and prints its table."""
  from r1jax.eval import report
  from r1jax.sharding import processes
  from r1jax.train.experiment import Experiment
  from r1jax.train.loop import train
  from r1jax.train.profile import window
  from r1jax.train.stop import Stopped

  exp = flags.load_config(Experiment, CONFIG.value, overrides)
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(WORKDIR.value)
  profile = window(PROFILE.value) if PROFILE.value else None
  processes.start(*PROCESSES())
  if processes.leader():
    stages = ', '.join(s.name for s in exp.stages)
    print(f'{exp.name}: seed {exp.seed}, stages {stages}, workdir {workdir}', flush=True)
  try:
    summary = train(exp, workdir, profile)
  except Stopped as stopped:
    if processes.leader():
      print(stopped, file=sys.stderr)
    sys.exit(stopped.code)
  if not processes.leader():
    return
  print('\n' + report.table(summary['evaluations']))
  print(
    f'\n{workdir}/summary.json, {workdir}/report.png, {workdir}/metrics.jsonl, '
    f'{workdir}/tb (TensorBoard)'
  )


if __name__ == '__main__':
  flags.run(main)
