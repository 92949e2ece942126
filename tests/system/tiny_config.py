"""A run of seconds, for tests: 20,000 parameters, the example task, four steps a stage.

Static batches compile sooner; tests that are about the paged engine say config.engine.type=Paged.
tiny_config.py trains both stages, tiny_config.py:sft the first one.
"""

import pathlib

from r1jax.algos.grpo import GRPO
from r1jax.core.config import to_dict
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.engine.batch import Static
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import MLA, Layer, ModelConfig, MoE
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rollout.collect import Limits
from r1jax.tasks.file import File
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.rl import RL
from r1jax.train.supervised import SFT

TASK = pathlib.Path(__file__).parents[1] / 'tasks' / 'my_task_example.py'
ATTENTION = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16, std=0.1)
EXPERTS = MoE(ffw=16, experts=4, active=2, std=0.1)
MODEL = ModelConfig(
  vocab=265,
  embed=32,
  layers=(Layer(ATTENTION, EXPERTS),) * 2,
  mtp=(Layer(ATTENTION, EXPERTS),),
  std=0.1,
  remat='none',
)
LIMITS = Limits(prompt=13, completion=16)


def get_config(stages='sft grpo'):
  """The experiment as a ConfigDict."""
  sft = SFT(AdamW(Constant(1e-2)), steps=4, data=Mixture((Part(Worked(16)),)), lines=8, length=64)
  rl = RL(
    AdamW(Constant(1e-3)),
    steps=4,
    prompts=4,
    algorithm=GRPO(group=4),
    limits=LIMITS,
  )
  evaluation = Evaluation(problems=16, samples=2, batch=8, limits=LIMITS)
  every = Checkpoint(every=2)
  chosen = tuple(stage for stage in (sft, rl) if stage.name in stages)
  exp = Experiment(
    'tiny', MODEL, File(str(TASK)), chosen, evaluation, checkpoint=every, engine=Static()
  )
  return to_dict(exp)
