"""Grouped matmul, as a specification: y_s = x_s · w[expert_s], every expert for every row."""

import jax
import jax.numpy as jnp


def grouped_matmul(x_SD: jax.Array, w_EDF: jax.Array, expert_S: jax.Array) -> jax.Array:
  """2·S·E·D·F flops: E times what is needed."""
  every_ESF = jnp.einsum('SD,EDF->ESF', x_SD, w_EDF)
  return jnp.take_along_axis(every_ESF, expert_S[None, :, None], axis=0)[0]
