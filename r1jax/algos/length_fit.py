"""Length fit: a head learns at every token how much is still to be written.

  L_len = λ Σ_t w_t (ŷ_t − log n_t)² / Σ_t w_t          ŷ_t = w_D · x_t + b

n_t ≥ 1 counts the tokens from the one predicted at t to the completion's last, so exp ŷ_t is an
estimate of them, good or bad by a factor: what a scheduler or a progress bar wants of an answer
that is being written. A completion that a limit cut has no length and is left out. w_t is the
weight of the token in the main loss. Cost: 2·T·D flops.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class LengthFit:
  """weight: λ. detach: the head learns, the model below it does not feel it."""

  weight: float = 0.1
  detach: bool = False

  def __post_init__(self) -> None:
    if self.weight <= 0:
      raise ValueError(f'weight is {self.weight}; it must be > 0 (no length fit: leave it out)')


def remaining(weight_BL: jax.Array, segment_BL: jax.Array) -> jax.Array:
  """n_BL: counted targets of the same segment from each position on; 0 behind the last one."""
  chex.assert_equal_shape([weight_BL, segment_BL])
  counted_BL = (weight_BL > 0).astype(jnp.int32)
  on_BL = jnp.flip(jnp.cumsum(jnp.flip(counted_BL, 1), 1), 1)  # to the end of the line
  behind_BL = on_BL - counted_BL
  last_BL = segment_BL != jnp.roll(segment_BL, -1, 1)
  last_BL = last_BL.at[:, -1].set(True)
  # What lies behind a segment is what lies behind its last position: the greatest still ahead.
  others_BL = jax.lax.cummax(jnp.where(last_BL, behind_BL, 0), 1, reverse=True)
  return on_BL - others_BL


def loss(y_BL: jax.Array, weight_BL: jax.Array, segment_BL: jax.Array) -> Mean:
  """(Σ w (ŷ − log n)², Σ w), without λ; where w is 0 nothing depends on ŷ."""
  chex.assert_equal_shape([y_BL, weight_BL])
  n_BL = remaining(weight_BL, segment_BL)
  off_BL = jnp.where(weight_BL > 0, y_BL - jnp.log(jnp.maximum(n_BL, 1).astype(y_BL.dtype)), 0)
  return (weight_BL * jnp.square(off_BL)).sum(), weight_BL.sum().astype(y_BL.dtype)
