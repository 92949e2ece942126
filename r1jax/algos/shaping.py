"""What is done to the rewards of a rollout before advantages are taken from them.

  overlong  R += clip((L − c − |o|) / c, −1, 0)       DAPO, arXiv 2503.14476, equation 13
  Rank      R  = (how many siblings it beats, a tie counts ½) / (G − 1)
  keep      groups with 0 < correct < G               DAPO's dynamic sampling, equation 11

The overlong penalty is 0 up to L − c tokens, falls linearly to −1 at L and stays there (DAPO's run:
L 20,480, c 4,096). Ranks lie in [0, 1] and depend on the order of a group's rewards alone: neither
an outlier nor the unit of a reward model matters. A group of equal rewards has rank ½ throughout,
hence advantage 0. Cost: O(P·G²) for ranks, O(P·G) for the rest, O(P log P) to choose groups.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Overlong:
  """Soft limit on the length of a completion, in tokens: none up to limit − buffer."""

  limit: int
  buffer: int

  def __post_init__(self) -> None:
    if not 0 < self.buffer <= self.limit:
      raise ValueError(
        f'buffer is {self.buffer} and limit {self.limit}; the penalty grows over the last `buffer` '
        'of `limit` tokens: give 0 < buffer ≤ limit'
      )


@dataclasses.dataclass(frozen=True)
class Raw:
  """Rewards as they are."""


@dataclasses.dataclass(frozen=True)
class Rank:
  """Rewards by their place in the group."""


@dataclasses.dataclass(frozen=True)
class Shaping:
  """The penalty for length comes first, so that ranks see it."""

  overlong: Overlong | None = None
  by: Raw | Rank = dataclasses.field(default_factory=Raw)


def shape(reward_PG: jax.Array, length_PG: jax.Array, cfg: Shaping) -> jax.Array:
  """The rewards that advantages are taken from; length_PG counts completion tokens."""
  chex.assert_equal_shape([reward_PG, length_PG])
  reward_PG = reward_PG.astype(jnp.promote_types(reward_PG.dtype, jnp.float32))
  if cfg.overlong is not None:
    reward_PG = reward_PG + overlong(length_PG, cfg.overlong).astype(reward_PG.dtype)
  match cfg.by:
    case Raw():
      return reward_PG
    case Rank():
      return ranks(reward_PG)


def overlong(length: jax.Array, cfg: Overlong) -> jax.Array:
  """DAPO's penalty in [−1, 0] for completions of these lengths."""
  return jnp.clip((cfg.limit - cfg.buffer - length) / cfg.buffer, -1, 0)


def ranks(reward_PG: jax.Array) -> jax.Array:
  """Share of its siblings that each sample beats; ties count half, a group of one has ½."""
  chex.assert_rank(reward_PG, 2)
  mine_PG1, other_P1G = reward_PG[:, :, None], reward_PG[:, None, :]
  # Beaten 1, tied ½: the sample itself is a tie, which the −½ takes out again.
  beaten_PG = ((mine_PG1 > other_P1G) + 0.5 * (mine_PG1 == other_P1G)).sum(axis=2) - 0.5
  group = reward_PG.shape[1]
  return beaten_PG / (group - 1) if group > 1 else jnp.full_like(beaten_PG, 0.5)


def keep(correct_PG: jax.Array) -> jax.Array:
  """True for the groups [P] that can teach: some samples are correct and some are not."""
  chex.assert_rank(correct_PG, 2)
  count_P = correct_PG.astype(bool).sum(axis=1)
  return (count_P > 0) & (count_P < correct_PG.shape[1])


def best(keep_P: np.ndarray, spread_P: np.ndarray, count: int) -> np.ndarray:
  """Indices, rising, of the `count` groups to train on: those to keep, the first of them first.

  Where they are too few the rest is filled by the largest spread, of equal ones by the first.
  """
  keep_P, spread_P = np.asarray(keep_P, bool), np.asarray(spread_P)
  order = np.lexsort((np.where(keep_P, 0, -spread_P), ~keep_P))  # stable; the last key leads
  return np.sort(order[:count])
