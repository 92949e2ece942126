"""Fused head: log-probabilities of given tokens without [B, T, V] logits (K5).

    logp_t = z_t[y_t] − logsumexp z_t,   z = truncate(x W / temperature)
    entropy_t = logsumexp z_t − Σ_v p_tv z_tv

or z = restrict(x W / temperature, S_t) where the sampler's kept sets S_t are given. Tokens go
through in chunks; each chunk's logits live only while it is computed, and again when its gradient
is (recomputed, not kept). A chunk is some positions of all rows, so that rows stay on their
devices. Memory: max(chunk, B)·V fp32 in place of B·T·V, split as the batch is; flops: 2·T·D·V
forward, three times that again with the gradient. Temperature, top-k and top-p are the sampler's
own, so that a trainer scores the distribution that was sampled from. The gradient treats the kept
set as constant. A given set is its ids, 4·K bytes a token (K 64 at 512 × 32,768 tokens: 4.3 GB over
all devices); as a mask over V it lives no longer than its chunk's logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from r1jax.kernels.logprob.truncate import Sampling, restrict, truncate

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
  support_BLK: jax.Array | None = None,
) -> LogProbs:
  """Log-probability of each target under softmax(x W / temperature), truncated as in sampling.

  support_BLK: what `truncate.support` kept where the tokens were sampled; it takes the place of
  top-k and top-p. A token whose ids are all FILLER (of a prompt) is scored over the vocabulary.
  """
  if support_BLK is None:
    return chunked(lambda z_CV, y_C: score(z_CV, y_C, sampling), x_BLD, w_DV, targets_BL, chunk)

  def replayed(z_CV: jax.Array, beside: tuple[jax.Array, jax.Array]) -> LogProbs:
    y_C, ids_CK = beside
    return picked(restrict(z_CV, ids_CK, sampling.temperature), y_C)

  return chunked(replayed, x_BLD, w_DV, (targets_BL, support_BLK), chunk)


def likelihoods(
  x_BLD: jax.Array, w_DV: jax.Array, targets_BL: jax.Array, chunk: int = 1024
) -> Likelihoods:
  """Log-probability of each target under softmax(x W), and whether greedy decoding takes it."""

  def one(z_CV: jax.Array, y_C: jax.Array) -> Likelihoods:
    picked_C = jnp.take_along_axis(z_CV, y_C[:, None], axis=-1)[:, 0]
    return Likelihoods(picked_C - jax.nn.logsumexp(z_CV, -1), jnp.argmax(z_CV, -1) == y_C)

  return chunked(one, x_BLD, w_DV, targets_BL, chunk)


def chunked(
  f: Callable[[jax.Array, Any], T], x_BLD: jax.Array, w_DV: jax.Array, beside: Any, chunk: int
) -> T:
  """f(logits_CV, beside_C) of some `chunk` tokens at a time, for results [B, L, …].

  A piece is the same positions of every row: rows stay on the devices that hold them.
  beside: a tree of arrays [B, L, …], of which f takes the piece's part.
  """
  B, L, _ = x_BLD.shape
  c = min(L, max(1, chunk // B))
  pad = -L % c

  def cut(a: jax.Array) -> jax.Array:
    padded = jnp.pad(a, ((0, 0), (0, pad), *((0, 0),) * (a.ndim - 2)))
    return jnp.moveaxis(padded.reshape(B, -1, c, *a.shape[2:]), 1, 0)

  @jax.checkpoint
  def one(_: None, given: tuple[jax.Array, Any]) -> tuple[None, T]:
    flat = lambda a: a.reshape(B * c, *a.shape[2:])
    x_CD, beside_C = jax.tree.map(flat, given)
    logits_CV = jnp.einsum(
      'CD,DV->CV', x_CD, w_DV.astype(x_CD.dtype), preferred_element_type=jnp.float32
    )
    out = f(logits_CV, beside_C)
    return None, jax.tree.map(lambda a: a.reshape(B, c, *a.shape[1:]), out)

  out = jax.lax.scan(one, None, jax.tree.map(cut, (x_BLD, beside)))[1]
  whole = lambda a: jnp.moveaxis(a, 0, 1).reshape(B, -1, *a.shape[3:])[:, :L]
  return jax.tree.map(whole, out)


def score(logits_CV: jax.Array, targets_C: jax.Array, sampling: Sampling) -> LogProbs:
  """LogProbs of targets under truncated, tempered logits; −inf outside the kept set."""
  return picked(truncate(logits_CV, sampling), targets_C)


def picked(z_CV: jax.Array, targets_C: jax.Array) -> LogProbs:
  """LogProbs of targets under softmax(z)."""
  lse_C = jax.nn.logsumexp(z_CV, axis=-1)
  # A selection, for the gradient of a gather is a scatter into V zeros a token.
  target_CV = jnp.arange(z_CV.shape[-1]) == targets_C[:, None]
  picked_C = jnp.sum(jnp.where(target_CV, z_CV, 0.0), -1)
  fixed_CV, fixed_C = jax.lax.stop_gradient((z_CV, lse_C))
  p_CV = jnp.exp(fixed_CV - fixed_C[:, None])
  mean_C = jnp.sum(jnp.where(p_CV > 0, p_CV * fixed_CV, 0.0), -1)
  return LogProbs(picked_C - lse_C, fixed_C - mean_C)
