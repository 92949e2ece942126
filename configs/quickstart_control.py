r"""The quickstart's control: no RL; SFT goes on with the same solutions for RL's compute.

  python -m r1jax.bin.train --config=configs/quickstart_control.py --workdir=runs/control \
    --config.init=runs/quickstart/checkpoints/1000

tests/benchmarks/quickstart.py runs it for each seed, with the number of steps that it computes.
Needs: as the quickstart. Reached (seeds 0–2): 36 % before, 50 % after.
"""

import dataclasses

import ml_collections

from configs import quickstart
from r1jax.core.config import from_dict, to_dict
from r1jax.optim.schedules import Cosine
from r1jax.train.experiment import Experiment


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  exp = from_dict(Experiment, quickstart.get_config())
  sft, _ = exp.stages
  steps = 2000
  optimizer = dataclasses.replace(
    sft.optimizer, schedule=Cosine(1e-3, 1e-4, steps=steps, warmup=50)
  )
  more = dataclasses.replace(sft, name='sft_more', steps=steps, optimizer=optimizer)
  return to_dict(dataclasses.replace(exp, name='quickstart control', stages=(more,)))
