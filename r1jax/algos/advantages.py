"""Group-relative advantages: how much better a sample did than its siblings on the same prompt.

  Std:          A_i = (R_i − mean R) / (std R + eps)     GRPO, DeepSeekMath, arXiv 2402.03300
  Centered:     A_i = R_i − mean R                       Dr. GRPO, arXiv 2503.20783
  LeaveOneOut:  A_i = R_i − mean of the others' R        RLOO, arXiv 2402.14740

LeaveOneOut is Centered times G/(G−1): its baseline does not depend on the sample, so the policy
gradient is unbiased, where Centered's is (G−1)/G of it.

mean and std run over the whole group (std with 1/G; the papers do not say which), so advantages are
taken before a batch is split into minibatches. A group of equal rewards, and a group of one, has
advantage exactly 0. Cost: O(P·G).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Std:
  """Centre each group and divide by its standard deviation plus eps."""

  eps: float = 1e-6

  def __post_init__(self) -> None:
    if self.eps <= 0:
      raise ValueError(f'eps is {self.eps}; it must be > 0: zero-variance groups divide by it')


@dataclasses.dataclass(frozen=True)
class Centered:
  """Centre each group and leave the scale of its rewards."""


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
  """Centre each sample on the mean of its siblings."""


Scale = Std | Centered | LeaveOneOut


def group_advantages(reward_PG: jax.Array, scale: Scale) -> jax.Array:
  """Advantages [P, G] of rewards whose rows are complete groups; at least float32."""
  chex.assert_rank(reward_PG, 2)
  reward_PG = reward_PG.astype(jnp.promote_types(reward_PG.dtype, jnp.float32))
  # Relative to its first reward a group of equal rewards is all zeros, and so are its mean and
  # advantages; a large offset common to the group does not cost digits either.
  shifted_PG = reward_PG - reward_PG[:, :1]
  centered_PG = shifted_PG - shifted_PG.mean(axis=1, keepdims=True)
  match scale:
    case Centered():
      return centered_PG
    case LeaveOneOut():
      group = reward_PG.shape[1]
      return centered_PG * (group / max(group - 1, 1))
    case Std(eps):
      std_P1 = jnp.sqrt(jnp.square(centered_PG).mean(axis=1, keepdims=True))
      return centered_PG / (std_P1 + eps)
