"""Random keys by name, so that numbers do not depend on batching, order or the number of devices.

Every draw comes from `fold(run, step, prompt, sample, position)`: a chain of `fold_in`s. Who asks
for the number, in which batch, on which device, does not enter; a resumed run repeats the same
numbers.
"""

import jax
import jax.numpy as jnp


def fold(key: jax.Array, *data: int | jax.Array) -> jax.Array:
  """Folds integers into a key, left to right."""
  for x in data:
    key = jax.random.fold_in(key, x)
  return key


def fold_rows(key: jax.Array, *columns_B: jax.Array) -> jax.Array:
  """One key a row: `fold(key, a[i], b[i], ...)` for columns of equal length."""
  return jax.vmap(lambda *row: fold(key, *row))(*(jnp.asarray(c) for c in columns_B))
