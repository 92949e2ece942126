"""A teacher's distribution in short, and the student at the same tokens, without [B, L, V] logits.

    z_t = x_t W / temperature
    top       the K largest z_tv − logsumexp z_t, with their ids v, the likeliest first
    select    z_tv at K given ids, and logsumexp z_t, from which log-probabilities follow

Chunks as in the fused head: memory chunk·V fp32 and 2·B·L·K; flops 2·T·D·V forward, `select` three
times that again with the gradient. The gradient of the selection is a scatter of K numbers a token
into the chunk's logits, which exist anyway. `top` is of a constant teacher: it has no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels.logprob import chunked


class Top(NamedTuple):
  """Of each token the K likeliest, the likeliest first (of equals the smaller id)."""

  ids_BLK: jax.Array
  logp_BLK: jax.Array


class Selected(NamedTuple):
  """Of each token, tempered logits at given ids and their log-sum-exp over the vocabulary."""

  logits_BLK: jax.Array
  lse_BL: jax.Array


def top(
  x_BLD: jax.Array, w_DV: jax.Array, k: int, temperature: float = 1.0, chunk: int = 1024
) -> Top:
  """The k likeliest tokens under softmax(x W / temperature) and their log-probabilities."""
  _check(temperature)
  if not 1 <= k <= w_DV.shape[-1]:
    raise ValueError(f'k is {k}, the vocabulary {w_DV.shape[-1]}; expected 1 … that')

  def one(z_CV: jax.Array, _: None) -> Top:
    z_CV = z_CV / temperature
    z_CK, ids_CK = jax.lax.top_k(z_CV, k)
    return Top(ids_CK, z_CK - jax.nn.logsumexp(z_CV, axis=-1, keepdims=True))

  return chunked(one, *jax.lax.stop_gradient((x_BLD, w_DV)), None, chunk)


def select(
  x_BLD: jax.Array,
  w_DV: jax.Array,
  ids_BLK: jax.Array,
  temperature: float = 1.0,
  chunk: int = 1024,
) -> Selected:
  """x W / temperature at each token's K ids, and its log-sum-exp over all."""
  _check(temperature)

  def one(z_CV: jax.Array, ids_CK: jax.Array) -> Selected:
    z_CV = z_CV / temperature
    return Selected(jnp.take_along_axis(z_CV, ids_CK, axis=-1), jax.nn.logsumexp(z_CV, axis=-1))

  return chunked(one, x_BLD, w_DV, ids_BLK, chunk)


def _check(temperature: float) -> None:
  if temperature <= 0:
    raise ValueError(f'temperature is {temperature}; it must be > 0')
