r"""LoRA: adapters on a trained model learn harder sums, the model itself stays as it is.

  bash launch/quickstart.sh
  python -m r1jax.bin.train --config=configs/lora.py --workdir=runs/lora
  python -m r1jax.bin.merge --checkpoint=runs/lora --target=runs/merged

All weights instead: --config=configs/lora.py:full. Any stage takes adapters: configs/quickstart.py
trains GRPO on them with --config.init=… --config.lora.type=LoRA.

Needs: the quickstart's run; two CPU cores, 4 GiB, 4 minutes. Not yet run on TPU or GPU.
Reached (seeds 0–2, tests/benchmarks/algos.py; means and ranges),
from PPO in place of GRPO: 94.6 % (91.9 to 97.4), with all weights 96.2 % (94.7 to 97.8).
"""

import dataclasses

import ml_collections

from configs import quickstart
from r1jax.algos.lora import LoRA
from r1jax.core.config import ConfigError, from_dict, to_dict
from r1jax.core.errors import no_such
from r1jax.optim.schedules import Cosine
from r1jax.train.experiment import Experiment

# The quickstart knows 3 to 5 terms; these have 6 or 7, and every solution takes one step at a time.
LONGER = (('min_terms', 6), ('max_terms', 7), ('min_digits', 1), ('max_digits', 1))
KINDS = ('lora', 'full')
LIMITS = dataclasses.replace(quickstart.LIMITS, prompt=31, completion=68)


def get_config(weights: str = 'lora') -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict; 'full' trains all weights at a rate of their own."""
  if weights not in KINDS:
    raise ConfigError(f'configs/lora.py: {no_such("kind", weights, KINDS)}')
  exp = from_dict(Experiment, quickstart.get_config())
  sft, full = exp.stages[0], weights == 'full'
  rate = 1e-3 if full else 4e-3
  optimizer = dataclasses.replace(
    sft.optimizer, schedule=Cosine(rate, rate / 10, steps=1000, warmup=20), weight_decay=0.0
  )
  return to_dict(
    dataclasses.replace(
      exp,
      name=f'lora {weights}',
      init='runs/quickstart',
      lora=None if full else LoRA(rank=16, alpha=32.0, targets='.*'),
      task=dataclasses.replace(exp.task, options=LONGER, terse=0.0),
      stages=(dataclasses.replace(sft, optimizer=optimizer, steps=1000),),
      evaluation=dataclasses.replace(exp.evaluation, limits=LIMITS),
    )
  )
