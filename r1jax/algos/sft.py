"""Supervised losses: cross-entropy on worked solutions, and the same for multi-token prediction.

  L_main  = −Σ_i w_i log p(t_{i+1} | ≤ i) / Σ_i w_i
  L_MTP   = 1/D Σ_d −Σ_i w_{i+d} log p_d(t_{i+1+d} | ≤ i + d) / Σ_i w_i

DeepSeek-V3, arXiv 2412.19437, equations 24 and 25: every depth is divided by what divides the main
loss, so that the whole objective is one pair, (main sum + λ·MTP sum, weight). w marks the tokens to
learn: completions, not prompts, not padding. Depth d at position i predicts token i+1+d, which
counts if and only if it counts in the main loss. Cost: O(D·B·L).
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from r1jax.core.metrics import Mean


def cross_entropy(logp_BL: jax.Array, weight_BL: jax.Array) -> Mean:
  """(−Σ w·log p, Σ w) in nats; where w is zero neither value nor gradient depends on logp_BL."""
  chex.assert_equal_shape([logp_BL, weight_BL])
  logp_BL = jnp.where(weight_BL > 0, logp_BL, 0)
  weight_BL = weight_BL.astype(logp_BL.dtype)
  return -jnp.sum(weight_BL * logp_BL), weight_BL.sum()


def mtp_targets(
  target_BL: jax.Array, weight_BL: jax.Array, depth: int, segment_BL: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Targets and weights of MTP depth 1, 2, … from those of the main loss, in sequence order.

  target_BL[b, i] is token i+1 and weight_BL[b, i] says how much it counts. Targets past the end are
  0 with weight 0; a target in another segment of a packed row has weight 0 too.
  """
  if depth < 1:
    raise ValueError(f'depth is {depth}; MTP depths start at 1 (depth 0 is the main loss)')
  chex.assert_equal_shape([target_BL, weight_BL])
  later_BL, later_weight_BL = _shift(target_BL, depth), _shift(weight_BL, depth)
  if segment_BL is not None:
    same_BL = segment_BL == _shift(segment_BL, depth)
    later_weight_BL = jnp.where(same_BL, later_weight_BL, 0)
  return later_BL, later_weight_BL


def mtp_loss(
  logps_BL: Sequence[jax.Array], weights_BL: Sequence[jax.Array], weight_BL: jax.Array
) -> Mean:
  """(sum, weight) from log-probs and mtp_targets' weights of each depth, and the main weights."""
  if not logps_BL or len(logps_BL) != len(weights_BL):
    raise ValueError(
      f'mtp_loss got {len(logps_BL)} arrays of log-probs and {len(weights_BL)} of weights; '
      'give one of each for every depth, and at least one depth'
    )
  sums = [cross_entropy(logp, weight)[0] for logp, weight in zip(logps_BL, weights_BL, strict=True)]
  return sum(sums) / len(sums), weight_BL.astype(sums[0].dtype).sum()


def _shift(x_BL: jax.Array, by: int) -> jax.Array:
  """x[i + by] at i, zero past the end."""
  return jnp.pad(x_BL, ((0, 0), (0, by)))[:, by:]
