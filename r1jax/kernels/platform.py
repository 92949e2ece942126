"""Which implementation of an op runs where, and what it sums in."""

import re
from typing import Literal

import jax
import jax.numpy as jnp

# What a device calls itself, and the kernels written for it; others run XLA.
KERNELS = (
  (r'TPU ?(v[4-9]|\d\d?x|7)', 'tpu'),  # Mosaic for TPU
  (r'(NVIDIA )?G?H(100|200|800|20)\b', 'gpu'),  # Mosaic GPU for sm_90
)
# (op, kernel or library) that has run on its hardware and had the reference's numbers there. It
# serves unasked; the others serve those who ask for them by name.
PROVEN: frozenset[tuple[str, str]] = frozenset()


def resolve(implementation: str | None, default: dict[str, str], known: tuple[str, ...]) -> str:
  """The given implementation if known; without one the platform's default ('*' for any other)."""
  if implementation is None:
    return default.get(jax.default_backend(), default['*'])
  if implementation not in known:
    raise NotImplementedError(f'no implementation {implementation!r}; known: {", ".join(known)}')
  return implementation


def chosen(op: str, implementation: str | None, known: tuple[str, ...]) -> str:
  """The given implementation if known; without one the device's kernels if proven, or XLA."""
  if implementation is None:
    return kernels() if (op, kernels()) in PROVEN else 'xla'
  return resolve(implementation, {}, known)


def kernels(device_kind: str | None = None) -> Literal['tpu', 'gpu', 'xla']:
  """Which family of kernels a device runs; without a name, the first device of this process."""
  kind = jax.devices()[0].device_kind if device_kind is None else device_kind
  return next((name for pattern, name in KERNELS if re.match(pattern, kind)), 'xla')


def sums(x: jax.Array) -> jnp.dtype:
  """The dtype that products of x are summed in: fp32, or x's own where that is wider."""
  return jnp.promote_types(x.dtype, jnp.float32)
