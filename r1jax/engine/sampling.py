"""One token a row from logits, with its log-probability under the distribution it came from."""

import jax
import jax.numpy as jnp

from r1jax.kernels.logprob import score
from r1jax.kernels.logprob.truncate import Sampling, truncate


def sample(
  logits_BV: jax.Array, key_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
  """(token_B, logp_B); temperature 0 takes the most likely token and scores it at temperature 1."""
  if sampling.temperature == 0:
    token_B = jnp.argmax(logits_BV, -1).astype(jnp.int32)
  else:
    gumbel_BV = jax.vmap(lambda k: jax.random.gumbel(k, logits_BV.shape[-1:]))(key_B)
    token_B = jnp.argmax(truncate(logits_BV, sampling) + gumbel_BV, -1).astype(jnp.int32)
  return token_B, score(logits_BV, token_B, sampling).logp
