"""The only einsum that touches a weight: it dispatches on the leaf's type.

Weights are kept in their own dtype (fp32 masters) and computed with in the activation's. Cost: as
the einsum, 2·(product of all letters) flops.
"""

import jax
import jax.numpy as jnp

from r1jax.kernels.platform import sums


def matmul(subscripts: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum of an activation with a weight, in the activation's dtype; sums in at least fp32."""
  out = jnp.einsum(subscripts, x, w.astype(x.dtype), preferred_element_type=sums(x))
  return out.astype(x.dtype)
