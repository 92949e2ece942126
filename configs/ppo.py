r"""A tiny model that learns to reason by PPO: cold-start SFT, then a policy with a value head.

  python -m r1jax.bin.train --config=configs/ppo.py --workdir=runs/ppo

A critic of its own: --config.stages[1].algorithm.trunk.type=Separate

Needs: two CPU cores, 4 GiB, 8 minutes. Not yet run on TPU or GPU.
Reached (seeds 0–2, tests/benchmarks/algos.py; means and ranges):
39.7 % (34.5 to 44.1) of 1,024 held-out sums after SFT, 77.4 % (74.4 to 80.8) after PPO.
"""

import dataclasses

import ml_collections

from configs import quickstart
from r1jax.algos.ppo import PPO
from r1jax.algos.surrogate import Clip
from r1jax.core.config import from_dict, to_dict
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.train.experiment import Experiment
from r1jax.train.rl import RL


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  exp = from_dict(Experiment, quickstart.get_config())
  rl = RL(
    AdamW(Cosine(4e-4, 4e-5, steps=45, warmup=10), weight_decay=0.0),
    steps=45,
    prompts=240,
    algorithm=PPO(clip=Clip(0.2, 0.28), lam=1.0),
    limits=quickstart.LIMITS,
    name='ppo',
  )
  return to_dict(dataclasses.replace(exp, name='ppo', stages=(exp.stages[0], rl)))
