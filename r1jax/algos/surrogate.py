"""The clipped surrogate of PPO, its two ratios, and the three ways of averaging it over a batch.

  loss_t = −min(r_t A, clip(r_t, 1−low, 1+high) A)

  TokenRatio         r_t = π(o_t)/π_old(o_t)                 PPO, arXiv 1707.06347; GRPO
  SequenceRatio      r_t = (π(o)/π_old(o))^(1/|o|)           GSPO, arXiv 2507.18071

low ≠ high is DAPO's clip-higher (arXiv 2503.14476). R1's ε = 10 leaves the lower side unbound and
binds the upper one for A > 0 and r > 11. GSPO's bounds are far narrower (3e-4 and 4e-4), since a
geometric mean over |o| tokens hardly moves; with SequenceMean its objective is the paper's.

  TokenMean          Σ_it loss_it / Σ_i |o_i|                DAPO
  SequenceMean       1/B Σ_i 1/|o_i| Σ_t loss_it             GRPO, arXiv 2402.03300
  ConstantLength(n)  1/B Σ_i 1/n Σ_t loss_it                 Dr. GRPO, arXiv 2503.20783

Each is Σ w·loss over a batch, divided by a denominator of that batch; both are sums over sequences,
so microbatches add up. B counts sequences with at least one counted token: rows that only fill a
batch up, or are masked whole, change nothing. Cost: O(B·L).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class Clip:
  """Bounds of the ratio, 1−low and 1+high."""

  low: float = 0.2
  high: float = 0.2

  def __post_init__(self) -> None:
    if self.low <= 0 or self.high <= 0:
      raise ValueError(f'clip bounds must be > 0, got low={self.low}, high={self.high}')


@dataclasses.dataclass(frozen=True)
class TokenRatio:
  """Every token has its own ratio."""


@dataclasses.dataclass(frozen=True)
class SequenceRatio:
  """The tokens of a sequence share the geometric mean of their ratios."""


Ratio = TokenRatio | SequenceRatio


@dataclasses.dataclass(frozen=True)
class TokenMean:
  """Every token of the batch weighs the same."""


@dataclasses.dataclass(frozen=True)
class SequenceMean:
  """Every sequence weighs the same, its tokens share that weight."""


@dataclasses.dataclass(frozen=True)
class ConstantLength:
  """Every token weighs 1/n, n tokens being the longest completion: no bias by length."""

  n: int

  def __post_init__(self) -> None:
    if self.n < 1:
      raise ValueError(f'n is {self.n}; it must be ≥ 1: the longest completion in tokens')


Aggregate = TokenMean | SequenceMean | ConstantLength


def ratios(logp_BL: jax.Array, old_BL: jax.Array, mask_BL: jax.Array, how: Ratio) -> jax.Array:
  """r_t at each token, 1 outside the mask whatever stands there; π_old is a constant."""
  chex.assert_equal_shape([logp_BL, old_BL, mask_BL])
  mask_BL = mask_BL.astype(bool)
  log_BL = jnp.where(mask_BL, logp_BL - jax.lax.stop_gradient(old_BL), 0)
  match how:
    case TokenRatio():
      return jnp.exp(log_BL)
    case SequenceRatio():
      count_B1 = jnp.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
      mean_B1 = log_BL.sum(axis=1, keepdims=True) / count_B1
      return jnp.where(mask_BL, jnp.exp(mean_B1), 1)


def clipped(ratio_BL: jax.Array, adv_BL: jax.Array, clip: Clip) -> tuple[jax.Array, jax.Array]:
  """Loss of each token, and whether the clip binds there (its gradient is then zero).

  adv_BL may be [B, 1], one advantage for a whole sequence.
  """
  free_BL = ratio_BL * adv_BL
  bound_BL = jnp.clip(ratio_BL, 1 - clip.low, 1 + clip.high) * adv_BL
  return -jnp.minimum(free_BL, bound_BL), bound_BL < free_BL


def clipped_surrogate(
  logp_BL: jax.Array, old_BL: jax.Array, adv_B: jax.Array, clip: Clip
) -> tuple[jax.Array, jax.Array]:
  """`clipped` with a ratio for every token and an advantage for every sequence."""
  chex.assert_equal_shape([logp_BL, old_BL])
  chex.assert_shape(adv_B, logp_BL.shape[:1])
  ratio_BL = jnp.exp(logp_BL - jax.lax.stop_gradient(old_BL))
  return clipped(ratio_BL, adv_B[:, None], clip)


def weights_BL(mask_BL: jax.Array, how: Aggregate, dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Weight of each token, zero outside the mask: loss = Σ weights·loss_BL / denominator."""
  mask_BL = mask_BL.astype(dtype)
  match how:
    case TokenMean():
      return mask_BL
    case SequenceMean():
      return mask_BL / jnp.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
    case ConstantLength(n):
      return mask_BL / n


def denominator(mask_BL: jax.Array, how: Aggregate, dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """What the weighted sum is divided by: tokens, or sequences with at least one token."""
  mask_BL = mask_BL.astype(bool)
  match how:
    case TokenMean():
      return mask_BL.sum().astype(dtype)
    case SequenceMean() | ConstantLength():
      return mask_BL.any(axis=1).sum().astype(dtype)


def aggregate(loss_BL: jax.Array, mask_BL: jax.Array, how: Aggregate) -> Mean:
  """(sum, weight) of a batch or of any part of it.

  Whatever loss_BL holds outside the mask is ignored, NaN too. Its gradient is not: a caller whose
  arrays may hold such values clears them before computing the loss, as grpo.loss does.
  """
  chex.assert_equal_shape([loss_BL, mask_BL])
  weight_BL = weights_BL(mask_BL, how, loss_BL.dtype)
  total = jnp.sum(jnp.where(mask_BL.astype(bool), weight_BL * loss_BL, 0))
  return total, denominator(mask_BL, how, loss_BL.dtype)


def masked(x: jax.Array, mask: jax.Array) -> Mean:
  """(sum, count) of whatever the mask counts, of any shape."""
  chex.assert_equal_shape([x, mask])
  mask = mask.astype(bool)
  return jnp.where(mask, x, 0).sum(), mask.sum().astype(x.dtype)
