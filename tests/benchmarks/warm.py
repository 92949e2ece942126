"""A config without its cold start, for --config.init: several runs then share one.

python -m r1jax.bin.train --config=tests/benchmarks/warm.py:cold,configs/ppo.py --workdir=runs/base
python -m r1jax.bin.train --config=tests/benchmarks/warm.py:configs/ppo.py --config.init=runs/base
"""

import dataclasses

from r1jax.bin.flags import load_config
from r1jax.train.experiment import Experiment


def get_config(file: str) -> Experiment:
  """The file's config from its second stage on; 'cold,FILE': its first stage alone."""
  cold = file.startswith('cold,')
  exp = load_config(Experiment, file.removeprefix('cold,'), [])
  if cold:
    return dataclasses.replace(exp, name='cold start', stages=exp.stages[:1])
  return dataclasses.replace(exp, stages=exp.stages[1:])
