"""A small student of the quickstart's teacher: on its samples, on its logits, on its hidden layers.

The student has two layers of width 96 and a sixth of the teacher's parameters. It never sees the
task's own worked solutions: what the teacher writes after GRPO, graded and sifted, is all its data.

  python -m r1jax.bin.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=samples \\
    --prompts=1536 --group=2 --batch=128 --out=data/distill/samples.jsonl
  python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=logits \\
    --prompts=1536 --group=2 --batch=128 --out=data/distill/logits
  python -m r1jax.bin.train --config=configs/distill.py --workdir=runs/distill

Needs: two CPU cores, 4 GiB, and the quickstart's 7 minutes before.
Reached: not yet measured.
"""

import ml_collections

from r1jax.core.config import to_dict
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Solved
from r1jax.eval.evaluate import Evaluation
from r1jax.model.presets import tiny_dense
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.records.jsonl import Jsonl
from r1jax.rollout.collect import Limits
from r1jax.tasks.gym import Gym
from r1jax.train.distillation import Distillation, Hidden, Live, Logits, Stored
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.supervised import SFT

TEACHER = 'runs/quickstart'
DATA = 'data/distill'
# The quickstart's task and limits.
SUMS = Gym(
  'chain_sum',
  (('min_terms', 3), ('max_terms', 5), ('min_digits', 1), ('max_digits', 1)),
  style='bare',
  terse=0.6,
)
LIMITS = Limits(prompt=23, completion=44)
STEPS = 300


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  optimizer = AdamW(Cosine(2e-3, 2e-4, steps=STEPS, warmup=20))
  samples = Solved(Jsonl(f'{DATA}/samples.jsonl'), 'question', 'thought', 'answer')
  written = Mixture((Part(samples),))
  # A teacher is asked where it has been itself: on the task's worked solutions, most of which it
  # would not have written, what it says is worth less than they are.
  beside = Live(TEACHER, written, length=128)
  stages = (
    SFT(optimizer, STEPS, written, lines=8, length=128, name='samples'),
    Distillation(optimizer, STEPS, Stored(f'{DATA}/logits'), Logits(k=32), lines=8, name='logits'),
    Distillation(optimizer, STEPS, beside, Hidden(((0, 1), (1, 3)), 0.1), lines=8, name='hidden'),
  )
  return to_dict(
    Experiment(
      'distill',
      tiny_dense(embed=96, layers=2),
      SUMS,
      stages,
      evaluation=Evaluation(limits=LIMITS),
      checkpoint=Checkpoint(every=100),
    )
  )
