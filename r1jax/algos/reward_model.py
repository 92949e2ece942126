"""Reward models: the losses of the three kinds, and what is measured about any of them.

  pairwise   −log σ(r_chosen − r_rejected − m) + c (r_chosen + r_rejected)²    Bradley-Terry
  pointwise  −y log σ(r) − (1−y) log σ(−r)                                     safety, one label
  process    the same at the end of every step of a solution                   arXiv 2305.20050

Bradley-Terry leaves a constant of each prompt free; c pins it near 0 (arXiv 2312.09244). The margin
m says how much better the chosen one is (Llama 2, arXiv 2307.09288). R1's helpful model is
pairwise, its safety model point-wise (arXiv 2501.12948). Axes: Q bins of predicted probability.
Cost: O(B) or O(B·L) beside the model. A row masked out contributes to no value and no gradient.

  agreement      share of pairs with r_chosen > r_rejected, a tie counts ½
  calibration    ECE = Σ_q n_q/n |mean label_q − mean probability_q|            arXiv 1706.04599
  position_bias  of a judge that sees two answers: does the order decide?
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.algos.surrogate import Aggregate, TokenMean, aggregate, masked
from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class Pairwise:
  """center: c, weight of the squared sum of a pair's rewards; 0 leaves it out (0.01 is usual)."""

  center: float = 0.0

  def __post_init__(self) -> None:
    if self.center < 0:
      raise ValueError(f'center is {self.center}; it must be ≥ 0')


@dataclasses.dataclass(frozen=True)
class Pointwise:
  """One label for a whole answer."""


@dataclasses.dataclass(frozen=True)
class Process:
  """One label for each step; `aggregate` says whether steps or solutions weigh the same."""

  aggregate: Aggregate = dataclasses.field(default_factory=TokenMean)


RewardModel = Pairwise | Pointwise | Process


class Bins(NamedTuple):
  """Sums over the examples whose probability falls into each bin; they add up over batches."""

  count_Q: jax.Array
  probability_Q: jax.Array
  label_Q: jax.Array


def pairwise(
  chosen_B: jax.Array,
  rejected_B: jax.Array,
  cfg: Pairwise,
  margin_B: jax.Array | None = None,
  mask_B: jax.Array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) over pairs of scalar rewards."""
  chex.assert_equal_shape([chosen_B, rejected_B])
  mask_B = jnp.ones(chosen_B.shape, bool) if mask_B is None else mask_B.astype(bool)
  chosen_B, rejected_B = jnp.where(mask_B, chosen_B, 0), jnp.where(mask_B, rejected_B, 0)
  h_B = chosen_B - rejected_B
  ahead_B = h_B if margin_B is None else h_B - jnp.where(mask_B, margin_B, 0)
  loss_B = -jax.nn.log_sigmoid(ahead_B) + cfg.center * jnp.square(chosen_B + rejected_B)
  metrics = {
    'accuracy': agreement(chosen_B, rejected_B, mask_B),
    'margin': masked(h_B, mask_B),
    'chosen_reward': masked(chosen_B, mask_B),
    'rejected_reward': masked(rejected_B, mask_B),
  }
  return masked(loss_B, mask_B), metrics


def pointwise(
  logit_B: jax.Array, label_B: jax.Array, mask_B: jax.Array | None = None
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) over labelled answers; label_B may be soft, in [0, 1]."""
  chex.assert_equal_shape([logit_B, label_B])
  mask_B = jnp.ones(logit_B.shape, bool) if mask_B is None else mask_B.astype(bool)
  logit_B = jnp.where(mask_B, logit_B, 0)
  right_B = ((logit_B > 0) == (label_B > 0.5)).astype(logit_B.dtype)
  metrics = {
    'accuracy': masked(right_B, mask_B),
    'probability': masked(jax.nn.sigmoid(logit_B), mask_B),
  }
  return masked(bce(logit_B, label_B), mask_B), metrics


def process(
  logit_BL: jax.Array, label_BL: jax.Array, end_BL: jax.Array, cfg: Process
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) over steps; end_BL is True at the last token of each labelled one.

  The metric `solved` is the share of solutions whose least likely step is judged as labelled.
  """
  chex.assert_equal_shape([logit_BL, label_BL, end_BL])
  end_BL = end_BL.astype(bool)
  logit_BL = jnp.where(end_BL, logit_BL, 0)
  right_BL = (logit_BL > 0) == (label_BL > 0.5)
  whole_B = (jnp.where(end_BL, logit_BL, jnp.inf).min(axis=1) > 0) == jnp.where(
    end_BL, label_BL > 0.5, True
  ).all(axis=1)
  metrics = {
    'accuracy': masked(right_BL.astype(logit_BL.dtype), end_BL),
    'solved': masked(whole_B.astype(logit_BL.dtype), end_BL.any(axis=1)),
  }
  return aggregate(bce(logit_BL, label_BL), end_BL, cfg.aggregate), metrics


def bce(logit: jax.Array, label: jax.Array) -> jax.Array:
  """Binary cross-entropy in nats, exact for large logits."""
  label = label.astype(logit.dtype)
  return -label * jax.nn.log_sigmoid(logit) - (1 - label) * jax.nn.log_sigmoid(-logit)


def agreement(chosen_B: jax.Array, rejected_B: jax.Array, mask_B: jax.Array | None = None) -> Mean:
  """How often the model prefers what was chosen; a tie counts half."""
  mask_B = jnp.ones(chosen_B.shape, bool) if mask_B is None else mask_B
  return masked(((jnp.sign(chosen_B - rejected_B) + 1) / 2), mask_B)


def calibration_bins(
  probability_B: jax.Array, label_B: jax.Array, bins: int = 10, mask_B: jax.Array | None = None
) -> Bins:
  """Bins of equal width over [0, 1]; for pairs the probability is σ(r_chosen − r_rejected)."""
  mask_B = jnp.ones(probability_B.shape, bool) if mask_B is None else mask_B.astype(bool)
  safe_B = jnp.where(mask_B, probability_B, 0)
  at_B = jnp.clip((safe_B * bins).astype(int), 0, bins - 1)
  empty_Q = jnp.zeros(bins, safe_B.dtype)
  columns = jnp.ones_like(safe_B), safe_B, label_B.astype(safe_B.dtype)
  return Bins(*(empty_Q.at[at_B].add(jnp.where(mask_B, x_B, 0)) for x_B in columns))


def calibration_error(b: Bins) -> jax.Array:
  """The expected calibration error, from the bins of all batches added up; nan without examples."""
  return jnp.abs(b.label_Q - b.probability_Q).sum() / b.count_Q.sum()


def position_bias(
  first_B: jax.Array, swapped_B: jax.Array, mask_B: jax.Array | None = None
) -> dict[str, Mean]:
  """What the order of two answers does to a judge's probability that the first one shown is better.

  first_B: shown as (a, b); swapped_B: as (b, a), of the same pairs. A judge without bias has
  swapped = 1 − first. toward_first: mean probability of whatever is shown first, minus ½.
  inconsistent: share of pairs whose winner changes with the order. shift: mean |p − (1 − p′)|.
  """
  chex.assert_equal_shape([first_B, swapped_B])
  mask_B = jnp.ones(first_B.shape, bool) if mask_B is None else mask_B
  return {
    'toward_first': masked((first_B + swapped_B - 1) / 2, mask_B),
    'inconsistent': masked(((first_B > 0.5) != (swapped_B < 0.5)).astype(first_B.dtype), mask_B),
    'shift': masked(jnp.abs(first_B + swapped_B - 1), mask_B),
  }
