"""DeepSeek's block-scaled fp8 weights, read as bfloat16.

    w[r, c] = bfloat16(float32(fp8[r, c]) * scale_inv[r // 128, c // 128])

A weight is float8_e4m3fn [R, C]; '<name>_scale_inv' beside it is float32 (bfloat16 in Qwen 3's
checkpoints) [ceil(R / 128), ceil(C / 128)] (arXiv:2412.19437, section 3.3; `weight_dequant` in
inference/kernel.py of DeepSeek-V3's repository).

A block has one scale and a weight 256 values, so a block has at most 256 results: these are
computed and rounded once, and a weight is then one look-up in its block's table of two-byte
results. Cost: 256 products a block and one gather a weight, about 2 GB/s of bfloat16 a core, and
threads run side by side; casting with ml_dtypes, which holds the GIL, gives 0.2 GB/s.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from r1jax.checkpoint.public.tensors import Index, Tensor, Tensors, bounds
from r1jax.core.errors import UserError

SUFFIX = '_scale_inv'
BFLOAT16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
VALUES = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
CACHED = 1 << 16  # weights dequantized at a time: their indices stay in the second-level cache


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
    scale = self.tensors.read(name + SUFFIX, touched).astype(np.float32, copy=False)
    return dequantize(self.tensors.read(name, index), scale, self.block, first)


def dequantize(
  weight_RC: np.ndarray,
  scale: np.ndarray,
  block: tuple[int, int] = (128, 128),
  first: tuple[int, int] = (0, 0),
) -> np.ndarray:
  """bfloat16 [R, C] of fp8 weights; `first`: where in its block the first of them lies."""
  with np.errstate(over='ignore', invalid='ignore'):  # infinity and NaN, as in torch
    tables = (scale[..., None] * VALUES).astype(BFLOAT16).view(np.uint16)
  codes_RC, out_RC = weight_RC.view(np.uint8), np.empty(weight_RC.shape, np.uint16)
  rows, columns = weight_RC.shape
  table_C = (np.arange(columns) + first[1]) // block[1] * 256
  table_C = table_C.astype(np.min_scalar_type(256 * max(scale.shape[1], 1) - 1))
  step = max(CACHED // max(columns, 1), 1)
  for band, table in enumerate(tables):
    top, end = (max((band + i) * block[0] - first[0], 0) for i in (0, 1))
    for row in range(top, min(end, rows), step):
      part = slice(row, min(row + step, end))
      np.take(table, codes_RC[part] + table_C, out=out_RC[part], mode='clip')
  return out_RC.view(BFLOAT16)


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
