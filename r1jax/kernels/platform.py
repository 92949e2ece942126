"""Which implementation of an op runs where."""

import jax


def resolve(implementation: str | None, default: dict[str, str], known: tuple[str, ...]) -> str:
  """The given implementation if known; without one the platform's default ('*' for any other)."""
  if implementation is None:
    return default.get(jax.default_backend(), default['*'])
  if implementation not in known:
    raise NotImplementedError(f'no implementation {implementation!r}; known: {", ".join(known)}')
  return implementation
