"""DeepSeek's block-scaled fp8 weights, read as bfloat16.

    w[r, c] = bfloat16(float32(fp8[r, c]) * scale_inv[r // 128, c // 128])

A weight is float8_e4m3fn [R, C]; '<name>_scale_inv' beside it is float32 (bfloat16 in Qwen 3's
checkpoints) [ceil(R / 128), ceil(C / 128)] (arXiv:2412.19437, section 3.3; `weight_dequant` in
inference/kernel.py of DeepSeek-V3's repository).

The bytes are transposed before they are widened, while they are half as many: ours are [in, out]
where the public weights are [out, in], so what comes out is column-major and a leaf's transpose
costs nothing. Cost: 0.1 s of one core for the transpose and 0.2 s to widen a GB of bfloat16, one
compilation a shape; casting with ml_dtypes, which holds the GIL, takes 5 s. As everywhere in XLA,
results below 2^-126 are zero.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from r1jax.checkpoint.public.tensors import Index, Tensor, Tensors, bounds
from r1jax.core.errors import UserError

SUFFIX = '_scale_inv'
BFLOAT16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


class Dequantized:
  """The tensors with scales applied: no fp8, no scales; all others as they are."""

  def __init__(self, tensors: Tensors, block: tuple[int, int] = (128, 128)):
    self.tensors, self.block = tensors, block
    self.table: Mapping[str, Tensor] = {
      name: Tensor(BFLOAT16, t.shape, t.file) if t.dtype == FP8 else t
      for name, t in tensors.table.items()
      if not name.endswith(SUFFIX)
    }
    for name in tensors.table:
      _check(tensors.table, name, block)

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """A slice; of fp8 weights and scales, only what the slice touches is read."""
    weight = self.tensors.table[name]
    if weight.dtype != FP8:
      return self.tensors.read(name, index)
    index = bounds(index, weight.shape)
    touched = [slice(p.start // n, -(-p.stop // n)) for p, n in zip(index, self.block, strict=True)]
    first = tuple(part.start % n for part, n in zip(index, self.block, strict=True))
    scale = self.tensors.read(name + SUFFIX, touched)
    return dequantize(self.tensors.read(name, index), scale, self.block, first)


def dequantize(
  weight_RC: np.ndarray,
  scale: np.ndarray,
  block: tuple[int, int] = (128, 128),
  first: tuple[int, int] = (0, 0),
) -> np.ndarray:
  """bfloat16 [R, C], column-major, of fp8 weights; `first`: where in its block the first lies."""
  cpu = jax.local_devices(backend='cpu')[0]
  codes_CR = jax.device_put(weight_RC.view(np.uint8).T, cpu)  # XLA's transpose, 5 x NumPy's
  scale = jax.device_put(scale.T.astype(np.float32), cpu)
  return np.asarray(_scaled(codes_CR, scale, block[::-1], first[::-1])).T


@functools.partial(jax.jit, static_argnames=('block', 'first'))
def _scaled(
  codes_CR: jax.Array, scale: jax.Array, block: tuple[int, int], first: tuple[int, int]
) -> jax.Array:
  """bfloat16(value * scale of its block)."""
  whole = [blocks * size for blocks, size in zip(scale.shape, block)]
  before = [(at, full - at - n) for at, full, n in zip(first, whole, codes_CR.shape)]
  tiles = _values(jnp.pad(codes_CR, before)).reshape(
    scale.shape[0], block[0], scale.shape[1], block[1]
  )
  scaled = (tiles * scale[:, None, :, None]).astype(jnp.bfloat16).reshape(whole)
  return jax.lax.slice(scaled, first, [at + n for at, n in zip(first, codes_CR.shape)])


def _values(codes: jax.Array) -> jax.Array:
  """float32 of float8_e4m3fn bytes; by integers, which XLA vectorizes and its own cast it does not.

  Sign, 4 bits of exponent (bias 7), 3 of mantissa; below exponent 1 steps of 2^-9; 127 is NaN.
  """
  codes = codes.astype(jnp.uint32)
  size = codes & 0x7F
  normal = jax.lax.bitcast_convert_type((size << 20) + (120 << 23), jnp.float32)
  small = size.astype(jnp.int32).astype(jnp.float32) * 2.0**-9
  value = jnp.where(size < 8, small, jnp.where(size == 0x7F, jnp.nan, normal))
  return jnp.where(codes < 0x80, value, -value)


def _check(table: Mapping[str, Tensor], name: str, block: tuple[int, int]) -> None:
  """Raises unless weights and scales come in pairs that fit each other."""
  tensor, weight = table[name], table.get(name.removesuffix(SUFFIX))
  if name.endswith(SUFFIX) and (weight is None or weight.dtype != FP8):
    raise UserError(
      f"{tensor.file}: scale '{name}' has no fp8 weight (no '{name.removesuffix(SUFFIX)}' of "
      f'{FP8}); take the checkpoint as its maker published it'
    )
  if tensor.dtype != FP8:
    return
  scale = table.get(name + SUFFIX)
  if scale is None:
    raise UserError(
      f"{tensor.file}: fp8 weight '{name}' has no scale ('{name}{SUFFIX}'); take the checkpoint "
      'as its maker published it'
    )
  dtype = scale.dtype if scale.dtype == BFLOAT16 else np.dtype(np.float32)
  expected = Tensor(dtype, tuple(-(-size // n) for size, n in zip(tensor.shape, block)), scale.file)
  if scale != expected or len(tensor.shape) != 2:
    raise UserError(
      f"{scale.file}: scale '{name}{SUFFIX}' is {scale}, a weight of {tensor} in blocks of "
      f'{block[0]} x {block[1]} has {expected}; check weight_block_size of config.json'
    )
