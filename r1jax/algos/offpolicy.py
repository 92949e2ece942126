"""Corrections for samples that are not from the policy being trained.

  SequenceMask   m_i  = 0 if A_i < 0 and mean_t log(π_s/π)_it > δ, else 1
  Truncated      w_it = min(π_old/π_s, cap)

π_s is the rollout's distribution as it was sampled from, π_old the trainer's before its first
update. Both multiply the surrogate alone, not the KL term and not the denominator, which is taken
before the parameters are known and must not depend on them.

SequenceMask: DeepSeek-V3.2, arXiv 2512.02556 (δ unpublished): a bad answer that the policy would
hardly give any more teaches nothing. Truncated importance sampling: Yao et al. (2025),
"Your efficient RL framework secretly brings you off-policy RL training" (C ≈ 2), for rollouts by
another program than the trainer's; where π_old is the rollout's own it would be 1. Cost: O(B·L).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SequenceMask:
  """Drop bad sequences (A < 0) that are over delta nats a token from the policy."""

  delta: float

  def __post_init__(self) -> None:
    if self.delta < 0:
      raise ValueError(f'delta is {self.delta}; it must be ≥ 0: nats a token')


@dataclasses.dataclass(frozen=True)
class Truncated:
  """Weigh each token by π_old/π_s, cap at most."""

  cap: float = 2.0

  def __post_init__(self) -> None:
    if self.cap <= 0:
      raise ValueError(f'cap is {self.cap}; it must be > 0 (2 is usual)')


def kept(
  logp_BL: jax.Array, sampled_BL: jax.Array, adv_B: jax.Array, mask_BL: jax.Array, cfg: SequenceMask
) -> jax.Array:
  """Whether each sequence [B] stays; a sequence without tokens does."""
  chex.assert_equal_shape([logp_BL, sampled_BL, mask_BL])
  mask_BL = mask_BL.astype(bool)
  log_BL = jnp.where(mask_BL, jax.lax.stop_gradient(sampled_BL - logp_BL), 0)
  far_B = log_BL.sum(axis=1) > cfg.delta * mask_BL.sum(axis=1)
  return ~((adv_B < 0) & far_B)


def truncated_weights(
  old_BL: jax.Array, sampled_BL: jax.Array, mask_BL: jax.Array, cfg: Truncated
) -> jax.Array:
  """min(π_old/π_s, cap) at each token, a constant; 1 outside the mask whatever stands there."""
  chex.assert_equal_shape([old_BL, sampled_BL, mask_BL])
  log_BL = jnp.where(mask_BL.astype(bool), old_BL - sampled_BL, 0)
  weight_BL = jnp.where(mask_BL.astype(bool), jnp.minimum(jnp.exp(log_BL), cfg.cap), 1)
  return jax.lax.stop_gradient(weight_BL)
