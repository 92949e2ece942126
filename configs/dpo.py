r"""DPO on a model's own samples: of two answers to a question, a right and a wrong one.

  bash launch/quickstart.sh
  python -m r1jax.bin.curate --checkpoint=runs/quickstart/checkpoints/1000 --kind=pairs \
    --prompts=4096 --group=4 --batch=128 --per_prompt=1 --out=data/pairs.jsonl
  python -m r1jax.bin.train --config=configs/dpo.py --workdir=runs/dpo

The model is the quickstart's after SFT, before GRPO. Its wrong answers resemble the right ones, and
DPO alone makes both unlikely (β 0.1, seed 0: accuracy fell to 29 %); nll, the chosen ones' loss,
keeps them written. Another model and its pairs: --config=configs/dpo.py:CHECKPOINT,FILE. Records of
your own, held_out alike with another share: --config.stages[0].data.records.path=…. Other losses:
--config.stages[0].objective.form.type=IPO, --config.stages[0].objective.score.type=PerToken.

Needs: the quickstart's run; two CPU cores, 4 GiB, 3 minutes. Not yet run on TPU or GPU.
Reached (seeds 0–2, tests/benchmarks/algos.py; means and ranges):
accuracy from 39.7 % to 75.0 % (69.9 to 78.0), held-out pairs from 79.8 % to
87.1 % (85.3 to 88.2). As many steps of SFT on the chosen ones: 61.8 % (58.4 to 66.6) and
88.4 % (87.0 to 89.3).
"""

import dataclasses

import ml_collections

from configs import quickstart
from r1jax.algos.dpo import DPO
from r1jax.core.config import ConfigError, from_dict, to_dict
from r1jax.data.preferences import Pairs
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Cosine
from r1jax.records.jsonl import Jsonl
from r1jax.train.experiment import Experiment
from r1jax.train.preferences import Preference


def get_config(
  where: str = 'runs/quickstart/checkpoints/1000,data/pairs.jsonl',
) -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict; where: the checkpoint and the file of its pairs."""
  checkpoint, _, file = where.partition(',')
  if not (checkpoint and file) or ',' in file:
    raise ConfigError(f'configs/dpo.py:{where}; expected CHECKPOINT,FILE after the :')
  pairs = Jsonl(file)
  dpo = Preference(
    AdamW(Cosine(2e-4, 2e-5, steps=200, warmup=20), weight_decay=0.0),
    steps=200,
    objective=DPO(beta=0.5, nll=1.0),
    data=Pairs(pairs, share=(0.0, 0.8)),
    held_out=Pairs(pairs, share=(0.8, 1.0)),
    rows=32,
    width=quickstart.LIMITS.prompt + quickstart.LIMITS.completion,
    name='dpo',
  )
  exp = from_dict(Experiment, quickstart.get_config())
  return to_dict(dataclasses.replace(exp, name='dpo', init=checkpoint, stages=(dpo,)))
