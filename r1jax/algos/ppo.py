"""Proximal policy optimization with a value head: rewards, advantages, losses.

  r_t  = [t last] R − β KL_t                                    the KL as a part of the reward
  δ_t  = r_t + γ V_{t+1} − V_t,   Â_t = Σ_k (γλ)^k δ_{t+k}      GAE, arXiv 1506.02438
  L    = −min(ρ Â, clip(ρ, 1−low, 1+high) Â) + c ½ max((V − Ĝ)², (clip(V, V_old ± ε) − Ĝ)²)

ρ = π/π_old, Ĝ = Â + V_old (before whitening). PPO: arXiv 1707.06347; clipped values and c = ½ as in
OpenAI's baselines. λ = γ = 1 makes Â the Monte-Carlo return minus V. An answer ends with its last
token: V is 0 behind it, cut off or not. Tokens outside the mask are as if they were not there, so
that tool output in the middle of an answer neither earns nor discounts.

`targets` runs over the whole batch, before any split into minibatches; `loss` over any part of it.
Cost: O(B·L), L steps in sequence for GAE.
"""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.algos.grpo import token_metrics
from r1jax.algos.kl import K1, K2, K3, kl
from r1jax.algos.surrogate import (
  Aggregate,
  Clip,
  TokenMean,
  TokenRatio,
  aggregate,
  clipped,
  masked,
  ratios,
)
from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class Shared:
  """The value head reads the policy's hidden layer; detach: without moving the policy's trunk."""

  detach: bool = False


@dataclasses.dataclass(frozen=True)
class Separate:
  """The value head has a trunk of its own."""


@dataclasses.dataclass(frozen=True)
class PPO:
  """What distinguishes one PPO from another.

  group: samples of one prompt. old, truncated: as GRPO's. trunk: what the value head reads. lam:
  GAE's λ. value_clip: how far a value may move from V_old before its loss stops pulling, None for
  no bound. value_weight: c. beta, kl: penalty in the reward; K1 there, unlike in a loss, descends
  KL(π ‖ π_ref). whiten: advantages of the batch get mean 0 and variance 1.
  """

  group: int = 1
  trunk: Shared | Separate = dataclasses.field(default_factory=Shared)
  clip: Clip = dataclasses.field(default_factory=Clip)
  gamma: float = 1.0
  lam: float = 0.95
  value_clip: float | None = 0.2
  value_weight: float = 0.5
  beta: float = 0.0
  kl: K1 | K2 | K3 = dataclasses.field(default_factory=K1)
  whiten: bool = True
  aggregate: Aggregate = dataclasses.field(default_factory=TokenMean)
  old: Literal['sampled', 'recomputed'] = 'sampled'
  truncated: Literal['count', 'mask'] = 'count'

  def __post_init__(self) -> None:
    if self.group < 1:
      raise ValueError(f'group is {self.group}; it must be ≥ 1')
    for name in ('gamma', 'lam'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name} is {getattr(self, name)}; it must lie in [0, 1]')
    for name in ('value_weight', 'beta'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be ≥ 0')
    if self.value_clip is not None and self.value_clip <= 0:
      raise ValueError(f'value_clip is {self.value_clip}; it must be > 0, or None for no bound')


class Targets(NamedTuple):
  """What a batch is trained towards; constants."""

  advantage_BL: jax.Array
  return_BL: jax.Array


def targets(
  reward_B: jax.Array,
  value_BL: jax.Array,
  old_BL: jax.Array,
  ref_BL: jax.Array | None,
  mask_BL: jax.Array,
  cfg: PPO,
) -> Targets:
  """Advantages and returns of a whole batch, from before its first update."""
  reward_BL = token_rewards(reward_B, old_BL, ref_BL, mask_BL, cfg)
  adv_BL = gae(reward_BL, value_BL, mask_BL, cfg.gamma, cfg.lam)
  return_BL = jnp.where(mask_BL.astype(bool), adv_BL + value_BL, 0)
  if cfg.whiten:
    adv_BL = whiten(adv_BL, mask_BL, moments(adv_BL, mask_BL))
  return jax.lax.stop_gradient(Targets(adv_BL, return_BL))


def token_rewards(
  reward_B: jax.Array,
  old_BL: jax.Array,
  ref_BL: jax.Array | None,
  mask_BL: jax.Array,
  cfg: PPO,
) -> jax.Array:
  """The reward at the last counted token, minus β·KL at every one; 0 outside the mask."""
  chex.assert_equal_shape([old_BL, mask_BL])
  mask_BL = mask_BL.astype(bool)
  left_BL = jnp.cumsum(mask_BL[:, ::-1], axis=1)[:, ::-1]
  reward_BL = jnp.where(mask_BL & (left_BL == 1), reward_B.astype(old_BL.dtype)[:, None], 0)
  if not cfg.beta:
    return reward_BL
  if ref_BL is None:
    raise ValueError(f'beta is {cfg.beta} but ref_BL is None: give the log-probs, or set beta=0')
  penalty_BL = kl(cfg.kl, old_BL, ref_BL, old_BL)
  return reward_BL - jnp.where(mask_BL, cfg.beta * jax.lax.stop_gradient(penalty_BL), 0)


def gae(
  reward_BL: jax.Array, value_BL: jax.Array, mask_BL: jax.Array, gamma: float, lam: float
) -> jax.Array:
  """Advantages over the counted tokens, in their order; 0 elsewhere, whatever stands there."""
  chex.assert_equal_shape([reward_BL, value_BL, mask_BL])

  def back(carry: tuple, at: tuple) -> tuple:
    (adv_B, next_B), (reward_B, value_B, mask_B) = carry, at
    here_B = reward_B + gamma * next_B - value_B + gamma * lam * adv_B
    carry = jnp.where(mask_B, here_B, adv_B), jnp.where(mask_B, value_B, next_B)
    return carry, jnp.where(mask_B, here_B, 0)

  zero_B = jnp.zeros(len(reward_BL), jnp.result_type(reward_BL, value_BL))
  steps = reward_BL.T, value_BL.T, mask_BL.astype(bool).T
  return jax.lax.scan(back, (zero_B, zero_B), steps, reverse=True)[1].T


def moments(x_BL: jax.Array, mask_BL: jax.Array) -> tuple[Mean, Mean]:
  """Mean and variance (with 1/n) over the counted tokens, both as (sum, weight)."""
  total, count = masked(x_BL, mask_BL)
  mean = total / jnp.maximum(count, 1)
  return (total, count), masked(jnp.square(x_BL - mean), mask_BL)


def whiten(
  x_BL: jax.Array, mask_BL: jax.Array, of: tuple[Mean, Mean], eps: float = 1e-8
) -> jax.Array:
  """(x − mean)/√(variance + eps) with the moments of the whole batch; 0 outside the mask."""
  mean, variance = (total / jnp.maximum(weight, 1) for total, weight in of)
  return jnp.where(mask_BL.astype(bool), (x_BL - mean) * jax.lax.rsqrt(variance + eps), 0)


def value_errors(
  value_BL: jax.Array, old_value_BL: jax.Array, return_BL: jax.Array, bound: float | None
) -> tuple[jax.Array, jax.Array]:
  """½ max of the free and the bounded squared error, and where the bound cuts the gradient."""
  free_BL = jnp.square(value_BL - return_BL)
  if bound is None:
    return 0.5 * free_BL, jnp.zeros_like(free_BL, bool)
  old_value_BL = jax.lax.stop_gradient(old_value_BL)
  near_BL = old_value_BL + jnp.clip(value_BL - old_value_BL, -bound, bound)
  bound_BL = jnp.square(near_BL - return_BL)
  return 0.5 * jnp.maximum(free_BL, bound_BL), bound_BL > free_BL


def loss(
  logp_BL: jax.Array,
  old_BL: jax.Array,
  value_BL: jax.Array,
  old_value_BL: jax.Array,
  to: Targets,
  mask_BL: jax.Array,
  cfg: PPO,
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) of policy and value together, of a batch or any part of it."""
  chex.assert_equal_shape([logp_BL, old_BL, value_BL, old_value_BL, mask_BL, *to])
  mask_BL = mask_BL.astype(bool)
  logp_BL, value_BL = jnp.where(mask_BL, logp_BL, 0), jnp.where(mask_BL, value_BL, 0)
  ratio_BL = ratios(logp_BL, old_BL, mask_BL, TokenRatio())
  policy_BL, clipped_BL = clipped(ratio_BL, to.advantage_BL, cfg.clip)
  error_BL, held_BL = value_errors(value_BL, old_value_BL, to.return_BL, cfg.value_clip)
  metrics = token_metrics(logp_BL, old_BL, None, clipped_BL, mask_BL) | {
    'policy_loss': aggregate(policy_BL, mask_BL, cfg.aggregate),
    'value_loss': aggregate(error_BL, mask_BL, cfg.aggregate),
    'value_clip_fraction': masked(held_BL.astype(value_BL.dtype), mask_BL),
    'value': masked(value_BL, mask_BL),
  }
  return aggregate(policy_BL + cfg.value_weight * error_BL, mask_BL, cfg.aggregate), metrics
