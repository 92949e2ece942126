"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437 §2.2).

    h'_i = M [norm(Emb(t_{i+d})); norm(h_i)]     then one block, a norm, and the main model's head

Depth d sees h of depth d−1 and the token d ahead, and predicts token i+d+1. Embedding and head are
the main model's. Whether h has passed the final norm the paper leaves open: ModelConfig.mtp_input
says. Positions are those of h: RoPE is relative, so the other token's would give the same; whether
it is a key token is asked of the other token. The embedding half comes first, as in the public
weights (`eh_proj`); the paper writes it second. With a cache, a stack of one layer of its own, a
module drafts a token at a time (engine/speculative.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.kernels.matmul import matmul
from r1jax.model.block import Block
from r1jax.model.config import Layer
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.types import LayerIn, LayerOut, Place


class PredictionModule(nn.Module):
  """One depth; returns (h for the next depth, normed output for the head, layer outputs)."""

  cfg: Layer

  @nn.compact
  def __call__(
    self,
    h_BLD: jax.Array,
    embedded_BLD: jax.Array,
    place: Place,
    cache: tuple | None = None,
  ) -> tuple[jax.Array, jax.Array, LayerOut]:
    D, eps = h_BLD.shape[-1], self.cfg.eps
    joined = jnp.concatenate(
      [
        rms_norm(embedded_BLD, norm_scale(self, 'embedding_scale', D), eps),
        rms_norm(h_BLD, norm_scale(self, 'hidden_scale', D), eps),
      ],
      -1,
    )
    init = nn.initializers.normal(self.cfg.mlp.std)
    x_BLD = matmul(
      'BLE,ED->BLD', joined, weight(self, 'project', (2 * D, D), ('embed', None), init)
    )
    x_BLD, out = Block(self.cfg, name='block')(x_BLD, place, LayerIn(cache))
    return x_BLD, rms_norm(x_BLD, norm_scale(self, 'out_scale', D), eps), out
