"""Reinforcement learning with verifiable rewards.

    rollout → grade → shape → advantages → minibatches over a frozen π_old

Whose log-probabilities are π_old is written in the config (`algorithm.old`): as sampled by the
rollout, or recomputed by the trainer before the first update. The rollout's temperature, top-p and
top-k apply to the trainer's log-probabilities too, over the kept set that its own logits give
(`support='own'`) or over the rollout's (`support='replay'`), and the rollout's expert choices are
replayed (`routing='replay'`) or not.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos import grpo, surrogate
from r1jax.algos.grpo import GRPO
from r1jax.algos.ppo import PPO
from r1jax.algos.shaping import Shaping, best, keep, shape
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.optim.optimizer import AdamW
from r1jax.rewards.group import GroupWeights
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits, Trajectories
from r1jax.rollout.trajectory import RLBatch
from r1jax.tasks.task import Outcome
from r1jax.train import forward, ppo
from r1jax.train.step import Aux


@dataclasses.dataclass(frozen=True)
class Refill:
  """Dynamic sampling: groups that teach nothing are dropped and further questions sampled (DAPO).

  rollouts: at most so many more a step, each of `prompts` further questions; 0 keeps every group.
  by: a group is kept where some of its samples are correct and some are not (DAPO's, for graders
  that say so), or where its shaped rewards differ (for graders of degree, whose samples may all
  count as wrong).

  Once the rollouts are used up, missing groups are those whose rewards differ most, then those
  asked first; groups of equal rewards have advantage 0, but count in the denominators.
  """

  rollouts: int = 0
  by: Literal['outcome', 'reward'] = 'outcome'

  def __post_init__(self):
    if self.rollouts < 0:
      raise ValueError(f'refill.rollouts is {self.rollouts}; it must be ≥ 0 (0 drops no group)')


@dataclasses.dataclass(frozen=True)
class RL:
  """A stage: each step samples `algorithm.group` completions of `prompts` questions.

  Every stage asks the questions of split rl from the first one on.

  rewards: what a sample earns beside its siblings (diversity, conciseness), beyond its own grade.
  shaping: what is done to a group's rewards before advantages are taken (overlong, ranks).
  minibatches: updates a rollout, π_old frozen over them. refresh: steps between hard copies of the
  policy into the reference (R1: 400).
  support: whose top-k and top-p sets the trainer scores over: those that its own logits give, which
  may lack a sampled token (it is left out, `outside`), or the rollout's, replayed (V3.2), which
  never do. Replaying costs 4 · sampling.top_k bytes a token.
  staleness: steps between the weights that write samples and those trained on them. With 1 the next
  rollout is written while this one is trained on (train/ahead.py). The ratio to π_old corrects for
  it where π_old is the rollout's own; recomputed, π_old is the newer weights', and the rest of it
  is `algorithm.correct`'s (decoupled PPO, arXiv 2110.00641; AReaL, arXiv 2505.24298).
  waves: parts in which a rollout is written; one is graded while the next is written.
  """

  optimizer: AdamW
  steps: int
  algorithm: GRPO | PPO = GRPO()
  prompts: int = 32
  limits: Limits = Limits()
  sampling: Sampling = Sampling()
  rewards: GroupWeights = GroupWeights()
  shaping: Shaping = Shaping()
  minibatches: int = 1
  microbatches: int = 1
  refresh: int = 400
  routing: Literal['replay', 'free'] = 'replay'
  support: Literal['own', 'replay'] = 'own'
  staleness: Literal[0, 1] = 0
  waves: int = 1
  refill: Refill = Refill()
  auxiliary: forward.Auxiliary = forward.Auxiliary(mtp=0.1, detach_mtp=True)
  name: str = 'grpo'

  def __post_init__(self):
    for name in ('prompts', 'minibatches', 'microbatches', 'refresh', 'waves'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be ≥ 1')
    if self.refill.rollouts and self.algorithm.group < 2:
      raise ValueError('refill drops groups that are all alike, and a group of one is: set group')
    match self.algorithm:
      case GRPO(old='recomputed', correct=None) | PPO(old='recomputed') if self.staleness:
        raise ValueError(
          "staleness=1 with old='recomputed': nothing corrects for the older weights that sampled; "
          "set old='sampled', or GRPO's correct=Truncated()"
        )
    rollout = self.prompts * self.algorithm.group
    if rollout % (self.minibatches * self.microbatches):
      raise ValueError(
        f'{rollout} samples ({self.prompts} prompts × group {self.algorithm.group}) do not split '
        f'into {self.minibatches} minibatches × {self.microbatches} microbatches'
      )
    if self.prompts % self.waves:
      raise ValueError(f'{self.prompts} prompts do not split into {self.waves} waves')
    if self.support == 'replay' and not self.sampling.top_k:
      cut = self.sampling.top_p < 1
      raise ValueError(
        "support='replay' with top_p but no top_k: kept sets have no largest size; set "
        'sampling.top_k to the most tokens that one may have (such as 64)'
        if cut
        else "support='replay', but the sampling keeps every token: there is no set to replay; set "
        "sampling.top_k (and top_p), or support='own'"
      )


class Rollout(NamedTuple):
  """What a step trains on, and what was done for it.

  asked: questions; figures and tokens (with prompts): of all that was sampled, kept or not.
  """

  kept: Trajectories
  asked: int
  figures: dict[str, float]
  tokens: int


def shaped(t: Trajectories, stage: RL) -> jax.Array:
  """What advantages are taken from, [P, G]."""
  group = stage.algorithm.group
  reward_PG = jnp.asarray([g.reward for g in t.grades], jnp.float32).reshape(-1, group)
  return shape(reward_PG, t.samples.length_B.reshape(-1, group), stage.shaping)


def judged(t: Trajectories, stage: RL) -> tuple[np.ndarray, np.ndarray]:
  """Of each group, whether dynamic sampling keeps it, and how far its shaped rewards lie apart."""
  spread_P = np.ptp(np.asarray(shaped(t, stage)), axis=1)
  if stage.refill.by == 'reward':
    return spread_P > 0, spread_P
  correct_B = np.array([g.outcome is Outcome.CORRECT for g in t.grades])
  return np.asarray(keep(jnp.asarray(correct_B.reshape(len(spread_P), -1)))), spread_P


def chosen(t: Trajectories, stage: RL) -> Trajectories:
  """The best `prompts` groups of those there are, in the order of asking."""
  group_P = best(*judged(t, stage), stage.prompts)
  group = stage.algorithm.group
  return collect.take(t, (group_P[:, None] * group + np.arange(group)).reshape(-1))


def score(params: Any, b: RLBatch, cfg: ModelConfig, sampling: Sampling) -> jax.Array:
  """logp_BL of the targets: for π_old and the reference. The rollout's experts, other weights."""
  return forward.run(params, cfg, b.batch, sampling, b.routes, True, b.support_BLK)[1].logp


def values(params: Any, b: RLBatch, cfg: ModelConfig, stage: RL) -> jax.Array:
  """value_BL of PPO's critic before the first update."""
  out = Transformer(cfg).apply({'params': params}, b.batch.inputs, None, b.routes)
  return ppo.values(params, b, out.x_BLD, cfg, stage.algorithm)[0]


def reference_sampling(stage: RL) -> Sampling:
  """The reference at the rollout's temperature: untruncated, or over the replayed sets.

  A token that its own top-k or top-p set lacks would be infinitely far from it. Whole, it moves the
  KL by its mass outside the policy's kept set S, which has no gradient in expectation but adds
  noise: k3 of equal logits is ρ − log ρ − 1 a token, ρ the mass of S, and pulls by 1 − ρ. Over a
  replayed S every token is finite and the term is KL(π_S ‖ ref_S), zero with its gradient wherever
  the two agree on S. (V3.2 keeps the mask for π/π_old and says nothing of the reference.)
  """
  replayed = stage.support == 'replay'
  return stage.sampling if replayed else Sampling(stage.sampling.temperature)


def masks(b: RLBatch, stage: RL) -> jax.Array:
  """Completion tokens that count."""
  return grpo.loss_mask(b.batch.weights_BL > 0, b.truncated_B, stage.algorithm)


def loss(
  params: Any, b: RLBatch, d: forward.Denominators, cfg: ModelConfig, stage: RL
) -> tuple[jax.Array, Aux]:
  """The policy objective on one part of a minibatch, prediction modules and balance beside it.

  A token outside the trainer's own top-k or top-p set (after an update, or by rounding at its edge)
  has ratio 0, hence no gradient, but an infinite KL: it is left out and counted as `outside`. With
  replayed sets there is none.
  """
  out, scored = forward.run(
    params, cfg, b.batch, stage.sampling, b.routes, stage.auxiliary.detach_mtp, b.support_BLK
  )
  old_BL = b.sampled_BL if b.old_BL is None else b.old_BL
  counted_BL = masks(b, stage)
  mask_BL = counted_BL & jnp.isfinite(scored.logp) & jnp.isfinite(old_BL)
  load = {}
  match stage.algorithm:
    case GRPO() as a:
      main, metrics = grpo.loss(
        scored.logp, old_BL, b.ref_BL, b.advantage_B, mask_BL, a, b.sampled_BL
      )
    case PPO() as a:
      main, metrics, load = ppo.loss(params, b, scored, out.x_BLD, old_BL, mask_BL, cfg, a)
  beside, more = forward.auxiliary(params, cfg, b.batch, out, stage.auxiliary, d, b.truncated_B)
  count = mask_BL.sum().astype(jnp.float32)
  sampled = jnp.where(mask_BL, jnp.abs(scored.logp - b.sampled_BL), 0).sum()
  metrics |= {'loss': main, 'entropy': (jnp.where(mask_BL, scored.entropy, 0).sum(), count)}
  all_count = counted_BL.sum().astype(jnp.float32)
  metrics |= {'sampled_difference': (sampled, count), 'outside': (all_count - count, all_count)}
  metrics |= more
  return main[0] / d.main + beside, Aux(metrics, out.load | load)


def denominators(b: RLBatch, cfg: ModelConfig, stage: RL) -> forward.Denominators:
  """The algorithm's own denominator (sequences, tokens or a constant length) over the minibatch."""
  main = surrogate.denominator(masks(b, stage), stage.algorithm.aggregate)
  return forward.denominators(b.batch, main, cfg)


def batch_axis(b: RLBatch) -> RLBatch:
  """Axis of the batch in every leaf: routes have layers in front."""
  axes = jax.tree.map(lambda _: 0, b._replace(routes=None))
  return axes._replace(routes=jax.tree.map(lambda _: 1, b.routes))
