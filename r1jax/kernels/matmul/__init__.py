"""The only einsum that touches a weight: it dispatches on the leaf's type.

Weights are kept in their own dtype (fp32 masters) and computed with in the activation's. Cost: as
the einsum, 2·(product of all letters) flops.
"""

import math

import jax
import jax.numpy as jnp

from r1jax.kernels.platform import resolve, sums


def matmul(
  subscripts: str, x: jax.Array, w: jax.Array, implementation: str | None = None
) -> jax.Array:
  """einsum of an activation with a weight, in the activation's dtype; sums in at least fp32."""
  kind = resolve(implementation, {'cpu': 'flat', '*': 'einsum'}, ('flat', 'einsum'))
  run = flat if kind == 'flat' else einsum
  return run(subscripts, x, w.astype(x.dtype)).astype(x.dtype)


def einsum(subscripts: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """As it stands."""
  return jnp.einsum(subscripts, x, w, preferred_element_type=sums(x))


def flat(subscripts: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """'BL…,…→BL…' whose weight has the contracted axes in front, as one product of two matrices.

  Of more axes, XLA on CPU copies operands into another order, weights and the gradient's inputs
  too. Not elsewhere: joining B and L would move shards that are split over both.
  """
  (given, weight), out = subscripts.split('->')[0].split(','), subscripts.split('->')[1]
  k = len(given) - 2
  if weight != given[2:] + out[2:] or out[:2] != given[:2]:
    return einsum(subscripts, x, w)
  inner = math.prod(w.shape[:k])
  y_TK = einsum('TN,NK->TK', x.reshape(-1, inner), w.reshape(inner, -1))
  return y_TK.reshape(*x.shape[:2], *w.shape[k:])
