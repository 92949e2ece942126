"""A head that gives one number a position: rewards of a reward model, values of a critic.

    r_BL = x_BLD w_D + b            fp32, x after the final norm        2·T·D flops

Its weights are trained beside the model's and lie in the same parameters under the head's name,
params['reward'] say; what applies the model alone does not see them.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.kernels.matmul import matmul
from r1jax.model.config import ModelConfig
from r1jax.model.primitives import weight
from r1jax.model.transformer import Inputs, Output, Transformer


@dataclasses.dataclass(frozen=True)
class ScalarConfig:
  """Width of the model, initial spread of the weights."""

  embed: int
  std: float = 0.02


class Scalar(nn.Module):
  """One fp32 number a position."""

  cfg: ScalarConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    w_D = weight(self, 'weight', (self.cfg.embed,), ('embed',))
    bias = weight(self, 'bias', (), (), nn.initializers.zeros)
    return matmul('BLD,D->BL', x_BLD.astype(jnp.float32), w_D) + bias


def scores(params: Any, cfg: ModelConfig, name: str, inputs: Inputs) -> tuple[jax.Array, Output]:
  """r_BL of the head `name` over the model, and the model's output without prediction modules."""
  alone = dataclasses.replace(cfg, mtp=())
  out = Transformer(alone).apply({'params': params}, inputs._replace(ahead=()))
  return Scalar(ScalarConfig(cfg.embed)).apply({'params': params[name]}, out.x_BLD), out


def last(r_BL: jax.Array, last_B: jax.Array) -> jax.Array:
  """r_B at each row's position last_B."""
  return jnp.take_along_axis(r_BL, last_B[:, None], axis=1)[:, 0]
