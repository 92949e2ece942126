"""Group relative policy optimization: the loss of R1-Zero and R1.

  L = aggregate_it [ −min(r_it A_i, clip(r_it, 1−low, 1+high) A_i) + β KL_it ],   r = π/π_old

DeepSeekMath, arXiv 2402.03300; DeepSeek-R1, arXiv 2501.12948 (group 16, β 0.001, ε 10, k3). DAPO
and Dr. GRPO are other values of the same config. The library's default KL is V3.2's unbiased one;
the paper-faithful configs say K3(). Cost: O(B·L) beside the log-probabilities.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from r1jax.algos.advantages import Scale, Std
from r1jax.algos.kl import KL, Unbiased, k3, kl
from r1jax.algos.offpolicy import SequenceMask, Truncated, kept, truncated_weights
from r1jax.algos.surrogate import (
  Aggregate,
  Clip,
  Ratio,
  SequenceMean,
  TokenRatio,
  aggregate,
  clipped,
  masked,
  ratios,
)
from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class GRPO:
  """What distinguishes one member of the family from another.

  group: samples of one prompt.
  old: whose log-probabilities are π_old: the rollout's, or the trainer's before its first update.
  truncated: completions cut off at the limit count as they are, or are masked out (DAPO).
  drop, correct: off-policy corrections (offpolicy.py), None to leave them out.
  """

  group: int = 16
  clip: Clip = dataclasses.field(default_factory=Clip)
  kl: KL = dataclasses.field(default_factory=Unbiased)
  beta: float = 0.001
  scale: Scale = dataclasses.field(default_factory=Std)
  aggregate: Aggregate = dataclasses.field(default_factory=SequenceMean)
  old: Literal['sampled', 'recomputed'] = 'sampled'
  truncated: Literal['count', 'mask'] = 'count'
  ratio: Ratio = dataclasses.field(default_factory=TokenRatio)
  drop: SequenceMask | None = None
  correct: Truncated | None = None

  def __post_init__(self) -> None:
    if self.group < 1:
      raise ValueError(f'group is {self.group}; it must be ≥ 1 (and > 1 to learn anything)')
    if self.beta < 0:
      raise ValueError(f'beta is {self.beta}; it must be ≥ 0 (0 leaves the KL term out)')
    if self.correct and self.old == 'sampled':
      raise ValueError(
        "correct weighs tokens by π_old/π_sampled, which is 1 with old='sampled'; set "
        "old='recomputed' or correct=None"
      )


def completion_mask(length_B: jax.Array, L: int, start_B: jax.Array | int = 0) -> jax.Array:
  """True at the length_B tokens (end token included) from start_B on: by count, never by id."""
  start_B1 = jnp.broadcast_to(start_B, length_B.shape)[:, None]
  at_L = jnp.arange(L)
  return (at_L >= start_B1) & (at_L < start_B1 + length_B[:, None])


def loss_mask(mask_BL: jax.Array, truncated_B: jax.Array, cfg: GRPO) -> jax.Array:
  """The tokens that count, once cfg has decided about sequences that never reached an end token."""
  match cfg.truncated:
    case 'count':
      return mask_BL
    case 'mask':
      return mask_BL.astype(bool) & ~truncated_B[:, None]


def loss(
  logp_BL: jax.Array,
  old_BL: jax.Array,
  ref_BL: jax.Array | None,
  adv_B: jax.Array,
  mask_BL: jax.Array,
  cfg: GRPO,
  sampled_BL: jax.Array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) of a batch or any part of it; ref_BL may be None when β is 0.

  sampled_BL: the rollout's log-probs, where they are not old_BL; only the corrections read them.
  """
  if cfg.beta and ref_BL is None:
    raise ValueError(f'beta is {cfg.beta} but ref_BL is None: give the log-probs, or set beta=0')
  chex.assert_equal_shape([logp_BL, old_BL, mask_BL])
  chex.assert_shape(adv_B, logp_BL.shape[:1])
  mask_BL = mask_BL.astype(bool)
  # aggregate drops padding's values; selecting here also drops its gradient, were it 0·NaN.
  logp_BL = jnp.where(mask_BL, logp_BL, 0)
  ratio_BL = ratios(logp_BL, old_BL, mask_BL, cfg.ratio)
  loss_BL, clipped_BL = clipped(ratio_BL, adv_B[:, None], cfg.clip)
  weight_BL, metrics = corrections(logp_BL, old_BL, sampled_BL, adv_B, mask_BL, cfg)
  loss_BL *= weight_BL
  if cfg.beta:
    loss_BL += cfg.beta * kl(cfg.kl, logp_BL, ref_BL, old_BL)
  metrics |= token_metrics(logp_BL, old_BL, ref_BL, clipped_BL, mask_BL)
  return aggregate(loss_BL, mask_BL, cfg.aggregate), metrics


def corrections(
  logp_BL: jax.Array,
  old_BL: jax.Array,
  sampled_BL: jax.Array | None,
  adv_B: jax.Array,
  mask_BL: jax.Array,
  cfg: GRPO,
) -> tuple[jax.Array, dict[str, Mean]]:
  """m·w of each token (a constant), and what each correction did."""
  if cfg.correct and sampled_BL is None:
    raise ValueError('correct is set but sampled_BL is None: give the log-probs of the rollout')
  sampled_BL = old_BL if sampled_BL is None else sampled_BL
  weight_BL, metrics = jnp.ones_like(logp_BL), {}
  if cfg.correct:
    weight_BL = truncated_weights(old_BL, sampled_BL, mask_BL, cfg.correct).astype(logp_BL.dtype)
    metrics['importance_weight'] = masked(weight_BL, mask_BL)
  if cfg.drop:
    kept_B, any_B = kept(logp_BL, sampled_BL, adv_B, mask_BL, cfg.drop), mask_BL.any(axis=1)
    weight_BL = jnp.where(kept_B[:, None], weight_BL, 0)
    metrics['dropped'] = masked((~kept_B).astype(logp_BL.dtype), any_B)
  return weight_BL, metrics


def token_metrics(
  logp_BL: jax.Array,
  old_BL: jax.Array,
  ref_BL: jax.Array | None,
  clipped_BL: jax.Array,
  mask_BL: jax.Array,
) -> dict[str, Mean]:
  """Token means: KL to the reference (k3, absent without one), clipping, distance from π_old."""
  per_token = {
    'clip_fraction': clipped_BL,
    'ratio': jnp.exp(logp_BL - old_BL),
    'logp_difference': jnp.abs(logp_BL - old_BL),
    # The tokens were sampled from π_old, so this order estimates KL(π_old ‖ π).
    'kl_old': k3(old_BL, logp_BL),
  }
  if ref_BL is not None:
    per_token['kl'] = k3(logp_BL, ref_BL)
  return {name: masked(x_BL.astype(logp_BL.dtype), mask_BL) for name, x_BL in per_token.items()}
