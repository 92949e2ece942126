"""Fused head: log-probabilities of given tokens without [B, T, V] logits (K5).

    logp_t = z_t[y_t] − logsumexp z_t,   z = truncate(x W / temperature)
    entropy_t = logsumexp z_t − Σ_v p_tv z_tv

Tokens go through in chunks; each chunk's logits live only while it is computed, and again when its
gradient is (recomputed, not kept). Memory: chunk·V fp32 in place of B·T·V; flops: 2·T·D·V forward,
three times that again with the gradient. Temperature, top-k and top-p are the sampler's own, so
that a trainer scores the distribution that was sampled from. The gradient treats the kept set as
constant.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from r1jax.kernels.logprob.truncate import Sampling, truncate

T = TypeVar('T')


class LogProbs(NamedTuple):
  """Of each token; entropy (nats) carries no gradient."""

  logp: jax.Array
  entropy: jax.Array


class Likelihoods(NamedTuple):
  """Of each token; `greedy` says whether it is the most likely one (of equals the first)."""

  logp: jax.Array
  greedy: jax.Array


def logprobs(
  x_BLD: jax.Array,
  w_DV: jax.Array,
  targets_BL: jax.Array,
  sampling: Sampling = Sampling(),
  chunk: int = 1024,
) -> LogProbs:
  """Log-probability of each target under softmax(x W / temperature), truncated as in sampling."""
  return _chunked(lambda z_CV, y_C: score(z_CV, y_C, sampling), x_BLD, w_DV, targets_BL, chunk)


def likelihoods(
  x_BLD: jax.Array, w_DV: jax.Array, targets_BL: jax.Array, chunk: int = 1024
) -> Likelihoods:
  """Log-probability of each target under softmax(x W), and whether greedy decoding takes it."""

  def one(z_CV: jax.Array, y_C: jax.Array) -> Likelihoods:
    picked_C = jnp.take_along_axis(z_CV, y_C[:, None], axis=-1)[:, 0]
    return Likelihoods(picked_C - jax.nn.logsumexp(z_CV, -1), jnp.argmax(z_CV, -1) == y_C)

  return _chunked(one, x_BLD, w_DV, targets_BL, chunk)


def _chunked(
  f: Callable[[jax.Array, jax.Array], T],
  x_BLD: jax.Array,
  w_DV: jax.Array,
  targets_BL: jax.Array,
  chunk: int,
) -> T:
  """f(logits_CV, targets_C) of `chunk` tokens at a time; its results have the targets' shape."""
  D = x_BLD.shape[-1]
  tokens = targets_BL.size
  chunk = min(chunk, tokens)
  pad = -tokens % chunk
  x_nCD = jnp.pad(x_BLD.reshape(tokens, D), ((0, pad), (0, 0))).reshape(-1, chunk, D)
  y_nC = jnp.pad(targets_BL.reshape(tokens), (0, pad)).reshape(-1, chunk)

  @jax.checkpoint
  def one(_: None, xy: tuple[jax.Array, jax.Array]) -> tuple[None, T]:
    x_CD, y_C = xy
    logits_CV = jnp.einsum(
      'CD,DV->CV', x_CD, w_DV.astype(x_CD.dtype), preferred_element_type=jnp.float32
    )
    return None, f(logits_CV, y_C)

  out = jax.lax.scan(one, None, (x_nCD, y_nC))[1]
  return jax.tree.map(lambda a: a.reshape(-1)[:tokens].reshape(targets_BL.shape), out)


def score(logits_CV: jax.Array, targets_C: jax.Array, sampling: Sampling) -> LogProbs:
  """LogProbs of targets under truncated, tempered logits; −inf outside the kept set."""
  z_CV = truncate(logits_CV, sampling)
  lse_C = jax.nn.logsumexp(z_CV, axis=-1)
  # A selection, for the gradient of a gather is a scatter into V zeros a token.
  target_CV = jnp.arange(z_CV.shape[-1]) == targets_C[:, None]
  picked_C = jnp.sum(jnp.where(target_CV, z_CV, 0.0), -1)
  fixed_CV, fixed_C = jax.lax.stop_gradient((z_CV, lse_C))
  p_CV = jnp.exp(fixed_CV - fixed_C[:, None])
  mean_C = jnp.sum(jnp.where(p_CV > 0, p_CV * fixed_CV, 0.0), -1)
  return LogProbs(picked_C - lse_C, fixed_C - mean_C)
