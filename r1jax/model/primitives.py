"""Weights, norms and the dense feed-forward.

rms_norm(x) = x / sqrt(mean(x²) + ε) · scale
swiglu(x) = (silu(x W_gate) ⊙ x W_up) W_down          6·T·D·F flops
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.core.qarray import Weight, check
from r1jax.kernels.matmul import matmul
from r1jax.model.config import Dense

Init = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  init: Init | None = None,
) -> Weight:
  """Declares a parameter: shape, logical axes, initializer (normal with the config's std), fp32.

  The only caller of `self.param`. The stored leaf may be of any leaf type that has a logical shape;
  that shape is checked here because Linen checks only the first array of a composite leaf.
  """
  init = init or nn.initializers.normal(module.cfg.std)
  leaf = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
  check('/'.join((*module.path, name)), leaf, shape)
  return leaf


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """Root-mean-square norm over the last axis, in fp32."""
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return (y * scale).astype(x.dtype)


def swiglu(x_BLD: jax.Array, gate_DF: Weight, up_DF: Weight, down_FD: Weight) -> jax.Array:
  """silu(x W_gate) ⊙ (x W_up), projected back."""
  h_BLF = jax.nn.silu(matmul('BLD,DF->BLF', x_BLD, gate_DF)) * matmul('BLD,DF->BLF', x_BLD, up_DF)
  return matmul('BLF,FD->BLD', h_BLF, down_FD)


def norm_scale(module: nn.Module, name: str, width: int) -> jax.Array:
  """The scale of a norm: ones, replicated."""
  return weight(module, name, (width,), (None,), nn.initializers.ones)


class SwiGLU(nn.Module):
  """Dense feed-forward."""

  cfg: Dense

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    D, F, w = x_BLD.shape[-1], self.cfg.ffw, functools.partial(weight, self)
    return swiglu(
      x_BLD,
      w('gate', (D, F), ('embed', 'ffw')),
      w('up', (D, F), ('embed', 'ffw')),
      w('down', (F, D), ('ffw', 'embed')),
    )
