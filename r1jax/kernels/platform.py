"""Which implementation of an op runs where, and what it sums in."""

import jax
import jax.numpy as jnp


def resolve(implementation: str | None, default: dict[str, str], known: tuple[str, ...]) -> str:
  """The given implementation if known; without one the platform's default ('*' for any other)."""
  if implementation is None:
    return default.get(jax.default_backend(), default['*'])
  if implementation not in known:
    raise NotImplementedError(f'no implementation {implementation!r}; known: {", ".join(known)}')
  return implementation


def sums(x: jax.Array) -> jnp.dtype:
  """The dtype that products of x are summed in: fp32, or x's own where that is wider."""
  return jnp.promote_types(x.dtype, jnp.float32)
