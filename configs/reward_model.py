r"""Reward models of three kinds, trained on solutions whose mistakes are known.

  python -m r1jax.bin.train --config=configs/reward_model.py --workdir=runs/pairwise
  python -m r1jax.bin.train --config=configs/reward_model.py:pointwise --workdir=runs/pointwise
  python -m r1jax.bin.train --config=configs/reward_model.py:process --workdir=runs/process

pairwise: which of two solutions is the better one, as R1's helpful model. pointwise: the chance
that a solution is right, as its safety model. process: the same of every step. Each is SFT on
worked solutions, then the same body with a head, trained on 9,000 problems that come solved and
with one number wrong (r1jax/tasks/mistakes.py). evaluations.json has accuracy, agreement, margin
and calibration on held-out problems. Afterwards it judges and writes no more: r1jax/train/judge.py
asks it, colab/04_judges.ipynb shows it.

Needs: two CPU cores, 4 GiB, 5 minutes (pointwise 8). Not yet run on TPU or GPU.
Reached: REACHED
"""

import dataclasses

import ml_collections

from configs import dpo, quickstart
from r1jax.algos.reward_model import Pairwise, Pointwise, Process
from r1jax.core.config import ConfigError, from_dict, to_dict
from r1jax.core.errors import no_such
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.train.experiment import Experiment
from r1jax.train.preferences import Preference

# Objective, rate, steps. For hundreds of steps a whole solution's one bit teaches nothing, then all
# of it is learned at once: a single label is the slowest to come through.
KINDS = {
  'pairwise': (Pairwise(center=0.01), 2e-4, 1000),
  'pointwise': (Pointwise(), 2.5e-4, 2000),
  'process': (Process(), 3e-4, 1000),
}


def get_config(kind: str = 'pairwise') -> ml_collections.ConfigDict:
  """The experiment of one kind as a ConfigDict."""
  if kind not in KINDS:
    raise ConfigError(f'configs/reward_model.py: {no_such("kind", kind, KINDS)}')
  objective, rate, steps = KINDS[kind]
  exp = from_dict(Experiment, quickstart.get_config())
  optimizer = dataclasses.replace(
    exp.stages[0].optimizer, schedule=Cosine(2e-3, 2e-4, steps=500, warmup=50)
  )
  sft = dataclasses.replace(exp.stages[0], optimizer=optimizer, steps=500)
  judge = Preference(
    AdamW(Cosine(rate, rate / 10, steps=steps, warmup=20)),
    steps=steps,
    objective=objective,
    data=dpo.MISTAKES,
    held_out=dpo.HELD_OUT,
    rows=32,
    width=dpo.WIDTH,
    name=kind,
  )
  exp = dataclasses.replace(exp, name=f'{kind} reward model', task=dpo.SUMS, stages=(sft, judge))
  return to_dict(exp)
