r"""A tiny model that finds one fact among 64: what sparse attention is measured on.

  python -m r1jax.bin.train --config=configs/retrieval_tiny.py --workdir=runs/retrieval \
    --config.seed=1

Facts as text, first few, then up to all 64: a letter that comes back brings its digit back, and
heads that look things up form on short texts long before they form on long ones. Then SFT on the
task's own answers. Another attention: --config.model.layers[*].attention.pattern.type=Window \
--config.model.layers[*].attention.pattern.window=32; hybrid attention needs other stages, those of
retrieval_hybrid.py (tests/benchmarks/retrieval.py compares them).

Needs: two CPU cores, 8 minutes with other work beside it. Not yet run on TPU or GPU.
Reached (seed 1): 100 % of 1,024 held-out questions, greedily and at temperature 1. Seed 0 reached
100 % in the benchmark.
"""

import ml_collections

from r1jax.core.config import to_dict
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Problems, Worked
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import GQA, Dense, Full, Layer, ModelConfig, Pattern
from r1jax.model.presets import TINY_VOCAB
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant, Cosine
from r1jax.rollout.collect import Limits
from r1jax.tasks.retrieval import Retrieval
from r1jax.train.experiment import Checkpoint, Experiment
from r1jax.train.supervised import SFT, Phase, Pretrain

TASK = Retrieval()
# 256 characters of facts, three of the question, three markers; `<think>k3</think><answer>3…` has
# eight tokens. A line holds one worked example.
LIMITS = Limits(prompt=262, completion=8)
LENGTH = 269


def model(pattern: Pattern = Full()) -> ModelConfig:
  """0.1M parameters. Heads that look things up form late from small weights: these are large."""
  attention = GQA(heads=4, kv_heads=4, head=16, qk_norm=True, pattern=pattern, std=0.125)
  layer = Layer(attention, Dense(ffw=128, std=0.125))
  return ModelConfig(TINY_VOCAB, 64, (layer,) * 2, tied=True, std=0.2, remat='none')


def texts(*lengths: int) -> Mixture:
  """Facts as text, as many tokens of each length."""
  return Mixture(tuple(Part(Problems(Retrieval(n), 8000), weight=1 / n) for n in lengths))


def get_config() -> ml_collections.ConfigDict:
  """The experiment as a ConfigDict."""
  short = Pretrain(
    AdamW(Constant(1.5e-3, warmup=40), weight_decay=0.0),
    texts(8, 16, 32),
    (Phase(4000, lines=16, length=42),),
    name='short',
  )
  long = Pretrain(
    AdamW(Cosine(1.5e-3, 5e-4, steps=500, warmup=20), weight_decay=0.0),
    texts(32, 64, 128, 256),
    (Phase(500, lines=4, length=LENGTH),),
    name='long',
  )
  answers = SFT(
    AdamW(Cosine(2e-3, 1e-4, steps=3000, warmup=50), weight_decay=0.0),
    steps=3000,
    data=Mixture((Part(Worked(6000)),)),
    lines=2,
    length=LENGTH,
  )
  return to_dict(
    Experiment(
      'retrieval tiny',
      model(),
      TASK,
      (short, long, answers),
      evaluation=Evaluation(limits=LIMITS, passes=('greedy',)),
      checkpoint=Checkpoint(every=1000),
    )
  )
