"""The only einsum that touches a weight: it dispatches on the leaf's type.

Weights are kept in their own dtype (fp32 masters) and computed with in the activation's. Cost: as
the einsum, 2·(product of all letters) flops. A weight with adapters, x·base + scale · (x·down)·up,
takes 2·T·R·(in + out) more; trained alone, they need no gradient of the base's size, a third of the
flops of a step without them.
"""

import math

import jax
import jax.numpy as jnp

from r1jax.core.qarray import Adapted, Weight
from r1jax.kernels.platform import resolve, sums


def matmul(
  subscripts: str, x: jax.Array, w: Weight, implementation: str | None = None
) -> jax.Array:
  """einsum of an activation with a weight, in the activation's dtype; sums in at least fp32."""
  kind = resolve(implementation, {'cpu': 'flat', '*': 'einsum'}, ('flat', 'einsum'))
  run = flat if kind == 'flat' else einsum
  if not isinstance(w, Adapted):
    return run(subscripts, x, w.astype(x.dtype)).astype(x.dtype)
  first, second, down_first = chain(subscripts, w.inputs)
  near, far = (w.down, w.up) if down_first else (w.up, w.down)
  h = run(first, x, near.astype(x.dtype)).astype(x.dtype)
  low = run(second, h, far.astype(x.dtype))
  return (run(subscripts, x, w.base.astype(x.dtype)) + w.scale * low).astype(x.dtype)


def chain(subscripts: str, inputs: int) -> tuple[str, str, bool]:
  """The einsums of x with one factor and of that with the other; whether `down` is the first.

  The first is the one whose axes are summed over, so that the rank takes their place: for a weight
  of one input axis 'BLD,DNH->BLNH' gives 'BLD,Dr->BLr' and 'BLr,rNH->BLNH', and MLA's absorbed
  'BLNH,RNH->BLNR' gives 'BLNH,rNH->BLNr' and 'BLNr,Rr->BLNR'.
  """
  (given, weight), out = subscripts.split('->')[0].split(','), subscripts.split('->')[1]
  down, up = weight[:inputs] + 'r', 'r' + weight[inputs:]
  down_first = not set(down) <= {*out, 'r'}
  near, far = (down, up) if down_first else (up, down)
  kept = ''.join(l for l in dict.fromkeys(given + near) if l in out + far)
  return f'{given},{near}->{kept}', f'{kept},{far}->{out}', down_first


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
