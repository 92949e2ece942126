"""A linear map between the residual streams of two models: x W, 2·T·D·E flops.

Trained beside a student whose layers imitate those of a teacher of another width
(algos/distill.hidden); after training it is of no more use.
"""

import dataclasses

import flax.linen as nn
import jax

from r1jax.kernels.matmul import matmul
from r1jax.model.primitives import weight


@dataclasses.dataclass(frozen=True)
class Widths:
  """From `embed` numbers to `to`."""

  embed: int
  to: int


class Projection(nn.Module):
  """x in the other width; W starts at 1/√embed, which keeps the size of what passes."""

  cfg: Widths

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    D, E = self.cfg.embed, self.cfg.to
    init = nn.initializers.normal(D**-0.5)
    return matmul('BLD,DE->BLE', x_BLD, weight(self, 'weight', (D, E), ('embed', None), init))
