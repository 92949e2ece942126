"""Reinforcement learning with verifiable rewards.

    rollout → grade → shape → advantages → minibatches over a frozen π_old

Whose log-probabilities are π_old is written in the config (`algorithm.old`): as sampled by the
rollout, or recomputed by the trainer before the first update. The rollout's temperature, top-p and
top-k apply to the trainer's log-probabilities too, and its expert choices are replayed
(`routing='replay'`) or not.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from r1jax.algos import grpo, surrogate
from r1jax.algos.grpo import GRPO
from r1jax.algos.shaping import Shaping
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.optim.optimizer import AdamW
from r1jax.rewards.group import GroupWeights
from r1jax.rollout.collect import Limits
from r1jax.rollout.trajectory import RLBatch
from r1jax.train import forward
from r1jax.train.step import Aux


@dataclasses.dataclass(frozen=True)
class RL:
  """A stage: each step samples `algorithm.group` completions of `prompts` questions.

  rewards: what a sample earns beside its siblings (diversity, conciseness), beyond its own grade.
  shaping: what is done to a group's rewards before advantages are taken (overlong, ranks).
  minibatches: updates a rollout, π_old frozen over them. refresh: steps between hard copies of the
  policy into the reference (R1: 400).
  """

  optimizer: AdamW
  steps: int
  algorithm: GRPO = GRPO()
  prompts: int = 32
  limits: Limits = Limits()
  sampling: Sampling = Sampling()
  rewards: GroupWeights = GroupWeights()
  shaping: Shaping = Shaping()
  minibatches: int = 1
  microbatches: int = 1
  refresh: int = 400
  routing: Literal['replay', 'free'] = 'replay'
  auxiliary: forward.Auxiliary = forward.Auxiliary(mtp=0.1, detach_mtp=True)
  name: str = 'grpo'

  def __post_init__(self):
    rollout = self.prompts * self.algorithm.group
    if rollout % (self.minibatches * self.microbatches):
      raise ValueError(
        f'{rollout} samples ({self.prompts} prompts × group {self.algorithm.group}) do not split '
        f'into {self.minibatches} minibatches × {self.microbatches} microbatches'
      )


def score(params: Any, b: RLBatch, cfg: ModelConfig, sampling: Sampling) -> jax.Array:
  """logp_BL of the targets: for π_old and the reference. The rollout's experts, other weights."""
  return forward.run(params, cfg, b.batch, sampling, b.routes, True)[1].logp


def reference_sampling(stage: RL) -> Sampling:
  """The reference at the rollout's temperature, untruncated.

  A token that its own top-k or top-p set lacks would be infinitely far from it. Whole, it moves the
  KL by the mass outside the policy's kept set, which has no gradient.
  """
  return Sampling(stage.sampling.temperature)


def masks(b: RLBatch, stage: RL) -> jax.Array:
  """Completion tokens that count."""
  return grpo.loss_mask(b.batch.weights_BL > 0, b.truncated_B, stage.algorithm)


def loss(
  params: Any, b: RLBatch, d: forward.Denominators, cfg: ModelConfig, stage: RL
) -> tuple[jax.Array, Aux]:
  """The policy objective on one part of a minibatch, prediction modules and balance beside it.

  A token outside the trainer's own top-k or top-p set (after an update, or by rounding at its edge)
  has ratio 0, hence no gradient, but an infinite KL: it is left out and counted as `outside`.
  """
  out, scored = forward.run(
    params, cfg, b.batch, stage.sampling, b.routes, stage.auxiliary.detach_mtp
  )
  old_BL = b.sampled_BL if b.old_BL is None else b.old_BL
  counted_BL = masks(b, stage)
  mask_BL = counted_BL & jnp.isfinite(scored.logp) & jnp.isfinite(old_BL)
  main, metrics = grpo.loss(
    scored.logp, old_BL, b.ref_BL, b.advantage_B, mask_BL, stage.algorithm, b.sampled_BL
  )
  beside, more = forward.auxiliary(params, cfg, b.batch, out, stage.auxiliary, d)
  count = mask_BL.sum().astype(jnp.float32)
  sampled = jnp.where(mask_BL, jnp.abs(scored.logp - b.sampled_BL), 0).sum()
  metrics |= {'loss': main, 'entropy': (jnp.where(mask_BL, scored.entropy, 0).sum(), count)}
  all_count = counted_BL.sum().astype(jnp.float32)
  metrics |= {'sampled_difference': (sampled, count), 'outside': (all_count - count, all_count)}
  metrics |= more
  return main[0] / d.main + beside, Aux(metrics, out.load)


def denominators(b: RLBatch, cfg: ModelConfig, stage: RL) -> forward.Denominators:
  """The algorithm's own denominator (sequences, tokens or a constant length) over the minibatch."""
  main = surrogate.denominator(masks(b, stage), stage.algorithm.aggregate)
  return forward.denominators(b.batch, main, cfg)


def batch_axis(b: RLBatch) -> RLBatch:
  """Axis of the batch in every leaf: routes have layers in front."""
  axes = jax.tree.map(lambda _: 0, b._replace(routes=None))
  return axes._replace(routes=jax.tree.map(lambda _: 1, b.routes))
