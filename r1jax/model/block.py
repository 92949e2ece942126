"""One transformer block, and the only place where layer types are dispatched."""

import flax.linen as nn
import jax

from r1jax.model.config import GQA, MLA, Blocks, Dense, Layer, MoE
from r1jax.model.gqa import GroupedQueryAttention
from r1jax.model.mla import LatentAttention
from r1jax.model.moe import MixtureOfExperts
from r1jax.model.nsa import NativelySparseAttention
from r1jax.model.primitives import SwiGLU, norm_scale, rms_norm
from r1jax.model.types import Choices, LayerIn, LayerOut, Place
from r1jax.sharding.rules import constrain


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  cfg: Layer

  @nn.compact
  def __call__(self, x_BLD: jax.Array, place: Place, given: LayerIn) -> tuple[jax.Array, LayerOut]:
    c, D = self.cfg, x_BLD.shape[-1]
    h_BLD = rms_norm(x_BLD, norm_scale(self, 'attention_scale', D), c.eps)
    routes = given.routes or Choices()
    inputs = h_BLD, place, given.cache
    match c.attention:
      case MLA():
        y_BLD, kept = LatentAttention(c.attention, name='attention')(*inputs, routes.keys)
      case GQA(pattern=Blocks()):
        y_BLD, kept = NativelySparseAttention(c.attention, name='attention')(*inputs)
      case GQA():
        y_BLD, kept = GroupedQueryAttention(c.attention, name='attention')(*inputs, routes.keys)
    x_BLD = constrain(x_BLD + y_BLD, 'batch', 'length', None)
    h_BLD = rms_norm(x_BLD, norm_scale(self, 'mlp_scale', D), c.eps)
    match c.mlp:
      case Dense():
        y_BLD, out = SwiGLU(c.mlp, name='mlp')(h_BLD), LayerOut()
      case MoE():
        y_BLD, out = MixtureOfExperts(c.mlp, name='mlp')(h_BLD, place, routes.experts)
    routes = out.routes._replace(keys=kept.keys_BLT)
    out = out._replace(cache=kept.cache, routes=routes, index=kept.index)
    return constrain(x_BLD + y_BLD, 'batch', 'length', None), out
