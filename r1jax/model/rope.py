"""Rotary position embedding, YaRN and Llama 3's scaling.

    rotate(x, p)[2i]   = x[2i] cos(p ω_i) − x[2i+1] sin(p ω_i)
    rotate(x, p)[2i+1] = x[2i] sin(p ω_i) + x[2i+1] cos(p ω_i),      ω_i = θ^(−2i/P)

YaRN (arXiv 2309.00071, as in DeepSeek-V3's reference inference code): only where the context
exceeds the original length; slow frequencies are divided by the factor, fast ones kept, with a
linear ramp between the dimensions that turn β_fast and β_slow times over the original length. cos
and sin are not scaled; the softmax scale is multiplied by mscale², mscale = 0.1 · ln(factor) + 1
(where all of a head is rotated, as in Qwen, that is the scaling of cos and sin of other codes).
Llama 3.1 divides frequencies that turn less than `low` times over the original length, keeps those
that turn more than `high` times, and goes from one to the other linearly in the turns.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model.config import Llama3, Rope, Yarn


def active(scaling: Yarn | Llama3 | None) -> bool:
  """Whether this is YaRN at work: it acts only when the context is longer than the original one."""
  return isinstance(scaling, Yarn) and scaling.length > scaling.original


def frequencies(rope: Rope, width: int) -> np.ndarray:
  """ω_i, [width/2] in float64."""
  omega = rope.theta ** (-np.arange(0, width, 2) / width)
  if isinstance(rope.scaling, Llama3):
    return slowed(omega, rope.scaling)
  return yarned(omega, rope) if active(rope.scaling) else omega


def slowed(omega: np.ndarray, by: Llama3) -> np.ndarray:
  """Llama 3's frequencies, by how often a wave turns over the original length."""
  turns = by.original * omega / (2 * math.pi)
  keep = np.clip((turns - by.low) / (by.high - by.low), 0, 1)
  return omega * keep + omega / by.factor * (1 - keep)


def yarned(omega: np.ndarray, rope: Rope) -> np.ndarray:
  """YaRN's frequencies."""
  y, width = rope.scaling, 2 * omega.size

  def dimension(turns: float) -> float:
    """The dimension that turns this often over the original length."""
    return width * math.log(y.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

  low = max(math.floor(dimension(y.beta_fast)), 0)
  high = min(math.ceil(dimension(y.beta_slow)), width - 1)
  ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
  return omega / y.factor * ramp + omega * (1 - ramp)


def softmax_scale(rope: Rope, width: int) -> float:
  """width^-½, times mscale² under YaRN."""
  scale = width**-0.5
  if active(rope.scaling):
    scale *= (0.1 * rope.scaling.mscale * math.log(rope.scaling.factor) + 1.0) ** 2
  return scale


def rotate(x_BLNP: jax.Array, positions_BL: jax.Array, rope: Rope) -> jax.Array:
  """Rotates the last axis by its position, in fp32."""
  P = x_BLNP.shape[-1]
  omega_p = jnp.asarray(frequencies(rope, P), jnp.float32)
  angle_BL1p = positions_BL[:, :, None, None].astype(jnp.float32) * omega_p
  cos, sin = jnp.cos(angle_BL1p), jnp.sin(angle_BL1p)
  x = x_BLNP.astype(jnp.float32)
  if rope.interleaved:
    a, b = x[..., 0::2], x[..., 1::2]
    y = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
  else:
    a, b = jnp.split(x, 2, -1)
    y = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
  return y.astype(x_BLNP.dtype)
