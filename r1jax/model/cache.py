"""What generation remembers: one stack a run and block, in the scan's carry, indexed by layer.

Slot m of row b holds position m of the row's sequence. MLA keeps the latent and the rotated key
only (R + P numbers a token and layer: 576 for V3, where expanded keys and values would be 40,960).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model.config import GQA, MLA, ModelConfig, runs


class LatentCache(NamedTuple):
  """MLA: the normed latent and the rotated key side by side, C = R + P: decode reads one array."""

  kv_nBMC: jax.Array


class KVCache(NamedTuple):
  """GQA."""

  key_nBMKH: jax.Array
  value_nBMKH: jax.Array


Cache = LatentCache | KVCache


def empty(cfg: ModelConfig, batch: int, length: int) -> tuple[tuple[Cache, ...], ...]:
  """Zeros for every run and block: cache[run][block]."""

  def one(spec: MLA | GQA, n: int) -> Cache:
    zeros = lambda *shape: jnp.zeros((n, batch, length, *shape), cfg.dtype)
    match spec:
      case MLA():
        return LatentCache(zeros(spec.kv_latent + spec.rope))
      case GQA():
        return KVCache(zeros(spec.kv_heads, spec.head), zeros(spec.kv_heads, spec.head))

  return tuple(tuple(one(l.attention, r.repeats) for l in r.period) for r in runs(cfg.layers))


def write(
  stack_nBM: jax.Array, layer: jax.Array, slots_BL: jax.Array, values_BL: jax.Array
) -> jax.Array:
  """Puts new entries into one layer's slots; slots beyond the cache are dropped."""
  rows_B1 = jnp.arange(slots_BL.shape[0])[:, None]
  return stack_nBM.at[layer, rows_B1, slots_BL].set(values_BL.astype(stack_nBM.dtype), mode='drop')


def read(stack_nBM: jax.Array, layer: jax.Array) -> jax.Array:
  """One layer's memory."""
  return jax.lax.dynamic_index_in_dim(stack_nBM, layer, 0, keepdims=False)


def update(cache: Cache, layer: jax.Array, slots_BL: jax.Array, new: Cache) -> tuple[Cache, Cache]:
  """Writes new entries (without the layer axis); returns the cache and the layer's whole memory."""
  cache = type(cache)(*(write(c, layer, slots_BL, x) for c, x in zip(cache, new)))
  return cache, type(cache)(*(read(c, layer) for c in cache))
