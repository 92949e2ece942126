"""A tiny R1 that learns to reason: cold-start SFT, then GRPO, on chains of sums.

The laptop-size main job. Or: bash launch/quickstart.sh

  python -m r1jax.bin.train --config=configs/quickstart.py --workdir=runs/quickstart

Needs: two CPU cores, 4 GiB, 7 minutes. Not yet run on TPU or GPU.
Reached (seeds 0–2, tests/benchmarks/quickstart.py): 36 % after SFT, 73 % after GRPO;
50 % by more SFT instead (r1jax 5ad0472; README.md has the latest).
"""

import ml_collections

from r1jax.algos.grpo import GRPO
from r1jax.algos.surrogate import Clip, TokenMean
from r1jax.core.config import to_dict
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.eval.evaluate import Evaluation
from r1jax.model.presets import tiny_r1
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.rollout.collect import Limits
from r1jax.tasks.gym import Gym
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.rl import RL
from r1jax.train.supervised import SFT

# Three in five worked solutions take all steps at once. Which kind pays is not in the data: more
# SFT cannot find it out, GRPO can.
SUMS = Gym(
  'chain_sum',
  (('min_terms', 3), ('max_terms', 5), ('min_digits', 1), ('max_digits', 1)),
  style='bare',
  terse=0.6,
)
# The longest question has 20 tokens with the template (and 3 more where the thought is forced
# empty), the longest worked solution 43.
LIMITS = Limits(prompt=23, completion=44)


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  # The rate of SFT stays high: from a fully annealed, sharper place GRPO's steps lose what was
  # learned.
  sft = SFT(
    AdamW(Cosine(2e-3, 5e-4, steps=1000, warmup=50)),
    steps=1000,
    data=Mixture((Part(Worked(2000)),)),
    lines=8,
    length=128,
  )
  rl = RL(
    AdamW(Cosine(4e-4, 4e-5, steps=45, warmup=10), weight_decay=0.0),
    steps=45,
    prompts=24,
    algorithm=GRPO(group=10, clip=Clip(0.2, 0.28), aggregate=TokenMean()),
    limits=LIMITS,
  )
  return to_dict(
    Experiment(
      'quickstart',
      tiny_r1(),
      SUMS,
      (sft, rl),
      evaluation=Evaluation(limits=LIMITS),
      checkpoint=Checkpoint(every=100),
    )
  )
