"""The distribution that is sampled from: temperature, then top-k, then top-p.

One function for sampler and trainer. Cost: a sort of V numbers a token where top-p is on.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
  """temperature 0 is greedy; top_k 0 and top_p 1 keep everything."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise ValueError(f'need temperature ≥ 0, top_k ≥ 0, 0 < top_p ≤ 1; got {self}')


def truncate(logits_CV: jax.Array, sampling: Sampling) -> jax.Array:
  """Tempered logits, −inf outside the kept set.

  top-k keeps the k largest and everything equal to the k-th; top-p keeps the smallest set of most
  likely tokens whose mass reaches p (the token that crosses p is kept). Greedy (temperature 0)
  scores as temperature 1: an argmax has no density.
  """
  z_CV = logits_CV / (sampling.temperature or 1.0)
  if 0 < sampling.top_k < z_CV.shape[-1]:
    kth_C1 = jax.lax.top_k(jax.lax.stop_gradient(z_CV), sampling.top_k)[0][..., -1:]
    z_CV = jnp.where(z_CV >= kth_C1, z_CV, -jnp.inf)
  if sampling.top_p < 1:
    sorted_CV = -jnp.sort(-jax.lax.stop_gradient(z_CV), axis=-1)
    p_CV = jax.nn.softmax(sorted_CV, axis=-1)
    kept_CV = jnp.cumsum(p_CV, axis=-1) - p_CV < sampling.top_p
    lowest_C1 = jnp.min(jnp.where(kept_CV, sorted_CV, jnp.inf), -1, keepdims=True)
    z_CV = jnp.where(z_CV >= lowest_C1, z_CV, -jnp.inf)
  return z_CV
