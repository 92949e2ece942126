r"""A small student of the quickstart's teacher: on its samples, its logits, its hidden layers.

The student has two layers of width 96 and a sixth of the teacher's parameters. It never sees the
task's own worked solutions: what the teacher writes after GRPO, graded and sifted, is all its data.

  python -m r1jax.bin.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=samples \
    --prompts=1536 --group=2 --batch=128 --out=data/distill/samples.jsonl
  python -m r1jax.bin.curate --checkpoint=runs/quickstart --kind=logits \
    --prompts=1536 --group=2 --batch=128 --out=data/distill/logits
  python -m r1jax.bin.train --config=configs/distill.py --workdir=runs/distill

Another teacher and other files: --config=configs/distill.py:TEACHER,FOLDER. As many steps on the
task's own solutions, without a teacher: --config=configs/distill.py:alone

Needs: two CPU cores, 4 GiB, and the quickstart's 7 minutes before.
Reached (seeds 0–2, tests/benchmarks/algos.py; means and ranges):
after samples 23.6 % (19.5 to 27.5), after logits 68.8 % (65.6 to 72.5), after hidden layers
83.6 % (80.8 to 86.8); alone 27.1 % (22.2 to 33.1), the teacher 77.4 % (PPO in place of GRPO).
"""

import dataclasses

import ml_collections

from configs import quickstart
from r1jax.core.config import ConfigError, from_dict, to_dict
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Solved, Worked
from r1jax.model.presets import tiny_dense
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.records.jsonl import Jsonl
from r1jax.train.distillation import Distillation, Hidden, Live, Logits, Stored
from r1jax.train.experiment import Experiment
from r1jax.train.supervised import SFT

STEPS = 300


def get_config(where: str = 'runs/quickstart,data/distill') -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict; where: teacher and folder of its data, or 'alone'."""
  exp = from_dict(Experiment, quickstart.get_config())
  model = tiny_dense(embed=96, layers=2)
  if where == 'alone':
    optimizer = AdamW(Cosine(2e-3, 2e-4, steps=3 * STEPS, warmup=20))
    data = Mixture((Part(Worked(2000)),))
    stages = (SFT(optimizer, 3 * STEPS, data, lines=8, length=128, name='alone'),)
  else:
    teacher, _, folder = where.partition(',')
    if not (teacher and folder) or ',' in folder:
      raise ConfigError(f'configs/distill.py:{where}; expected TEACHER,FOLDER or alone after the :')
    stages = taught(teacher, folder)
  return to_dict(dataclasses.replace(exp, name='distill', model=model, stages=stages))


def taught(teacher: str, folder: str) -> tuple[SFT | Distillation, ...]:
  """Samples, logits, hidden layers, one after the other."""
  optimizer = AdamW(Cosine(2e-3, 2e-4, steps=STEPS, warmup=20))
  samples = Solved(Jsonl(f'{folder}/samples.jsonl'), 'question', 'thought', 'answer')
  written = Mixture((Part(samples),))
  # A teacher is asked where it has been itself: on the task's worked solutions, most of which it
  # would not have written, what it says is worth less than they are.
  beside = Live(teacher, written, length=128)
  stored = Stored(f'{folder}/logits')
  return (
    SFT(optimizer, STEPS, written, lines=8, length=128, name='samples'),
    Distillation(optimizer, STEPS, stored, Logits(k=32), lines=8, name='logits'),
    Distillation(optimizer, STEPS, beside, Hidden(((0, 1), (1, 3)), 0.1), lines=8, name='hidden'),
  )
