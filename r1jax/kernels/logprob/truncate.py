"""The distribution that is sampled from: temperature, then top-k, then top-p.

    truncate   −inf outside the set that these logits keep themselves
    support    the ids of that set, and  restrict   −inf outside given ids

The same functions for sampler and trainer. A set that is found again from other logits (other
weights, or the same ones rounded elsewhere) may lack the token that was drawn from the first;
`support` and `restrict` replay the first (DeepSeek-V3.2's "keep sampling mask", arXiv 2512.02556).
Cost: a sort of V numbers a token in `truncate` where top-p is on; the K = top_k best of V in
`support`, and 4·K bytes a token for as long as its ids are kept.
"""

import dataclasses

import jax
import jax.numpy as jnp

FILLER = -1  # in place of an id, where a kept set has fewer than K


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


def support(logits_CV: jax.Array, sampling: Sampling) -> jax.Array:
  """Ids [C, K] of the kept set, the most likely first, then FILLER; K = top_k, but at most V.

  The set of `truncate`, but never more than K: of tokens equal to the k-th the lower ids stay.
  """
  if not sampling.top_k:
    raise ValueError(f'a kept set of bounded size needs top_k > 0; got {sampling}')
  z_CV = jax.lax.stop_gradient(logits_CV) / (sampling.temperature or 1.0)
  best_CK, ids_CK = jax.lax.top_k(z_CV, min(sampling.top_k, z_CV.shape[-1]))
  if sampling.top_p < 1:
    p_CK = jax.nn.softmax(best_CK, axis=-1)
    kept_CK = jnp.cumsum(p_CK, axis=-1) - p_CK < sampling.top_p
    ids_CK = jnp.where(kept_CK, ids_CK, FILLER)
  return ids_CK.astype(jnp.int32)


def restrict(logits_CV: jax.Array, ids_CK: jax.Array, temperature: float) -> jax.Array:
  """Tempered logits, −inf outside the given ids; a token with fillers alone keeps everything."""
  V = logits_CV.shape[-1]
  # Fillers fall off the end: a negative index would count from there.
  at_CK = jnp.where(ids_CK < 0, V, ids_CK)
  # A mask, for the gradient of a selection is elementwise, that of a gather a scatter of floats.
  kept_CV = jax.vmap(lambda at_K: jnp.zeros(V, bool).at[at_K].set(True, mode='drop'))(at_CK)
  kept_CV |= (ids_CK < 0).all(-1, keepdims=True)
  return jnp.where(kept_CV, logits_CV / (temperature or 1.0), -jnp.inf)
