"""The only einsum that touches a weight: it dispatches on the leaf's type.

Weights are kept in their own dtype (fp32 masters) and computed with in the activation's. Cost: as
the einsum, 2·(product of all letters) flops.
"""

import jax
import jax.numpy as jnp


def matmul(subscripts: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum of an activation with a weight, in the activation's dtype; sums are kept in fp32."""
  out = jnp.einsum(subscripts, x, w.astype(x.dtype), preferred_element_type=jnp.float32)
  return out.astype(x.dtype)
