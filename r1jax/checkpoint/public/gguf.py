"""A GGUF file: its tensors, dequantized as they are read, and its key-values.

The package `gguf` (llama.cpp's own, https://github.com/ggml-org/llama.cpp/tree/master/gguf-py)
parses the file and knows the quantizations; it is imported when a file is opened. A quantized row
is a number of blocks of 32 or 256 weights, such as Q4_1, 20 bytes: w = d · q + m with float16 d, m
and 32 nibbles q. GGUF names the fastest axis first; here shapes are in torch's order.

Cost: opening takes 3 s for a vocabulary of 49 thousand (the package makes an array of each token)
and reads no tensor. Of a quantized tensor, the blocks that the slice touches are read and
dequantized, at 0.7 to 2 GB/s of float32 a core; others cost what tensors.py says.
"""

import os
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from r1jax.checkpoint.public.tensors import Index, Tensor, bounds, read_slice, refuse_pointer
from r1jax.core.errors import UserError

PLAIN = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
MAGIC = b'GGUF'


class Data(NamedTuple):
  """A tensor as stored: where it begins, its quantization (None: plain), the bytes' shape."""

  offset: int
  quantization: Any
  shape: tuple[int, ...]


class Gguf:
  """The tensors of a file; quantized ones appear as float32.

  metadata: the key-values as plain values, {'llama.block_count': 30, …}.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path).expanduser()
    self._gguf = _package()
    reader = _parse(self._gguf, self.path)
    self.metadata = {key: field.contents() for key, field in reader.fields.items()}
    if (parts := self.metadata.get('split.count', 1)) > 1:
      raise UserError(
        f"{self.path} is one of {parts} parts; join them first with 'llama-gguf-split --merge'"
      )
    self._data: dict[str, Data] = {}
    self.table: Mapping[str, Tensor] = {t.name: self._tensor(t) for t in reader.tensors}

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """A slice of a tensor; from any thread."""
    tensor, data = self.table[name], self._data[name]
    if data.quantization is None:
      return read_slice(tensor.file, data.offset, tensor.dtype, tensor.shape, index)
    *rows, columns = bounds(index, tensor.shape)
    weights, size = self._gguf.GGML_QUANT_SIZES[data.quantization]  # of a block
    first, last = columns.start // weights, -(-columns.stop // weights)
    cut = (*rows, slice(first * size, last * size))
    blocks = read_slice(tensor.file, data.offset, np.dtype(np.uint8), data.shape, cut)
    if not blocks.size:
      return np.empty((*blocks.shape[:-1], columns.stop - columns.start), np.float32)
    kept = slice(columns.start - first * weights, columns.stop - first * weights)
    return self._gguf.quants.dequantize(blocks, data.quantization)[..., kept]

  def _tensor(self, stored: Any) -> Tensor:
    kind, shape = stored.tensor_type.name, tuple(reversed(stored.shape.tolist()))
    if kind not in PLAIN and not hasattr(self._gguf.quants, kind):  # its classes
      raise UserError(
        f"{self.path}: tensor '{stored.name}' is {kind}, which the package gguf cannot dequantize; "
        'take the file in another quantization, such as Q8_0 or Q4_K'
      )
    quantization = None if kind in PLAIN else stored.tensor_type
    self._data[stored.name] = Data(stored.data_offset, quantization, stored.data.shape)
    return Tensor(np.dtype(PLAIN.get(kind, np.float32)), shape, str(self.path))


def _package() -> ModuleType:
  try:
    import gguf
    import gguf.quants
  except ImportError as error:
    raise UserError(f'GGUF files need the package gguf ({error}); pip install gguf') from error
  return gguf


def _parse(gguf: ModuleType, path: pathlib.Path) -> Any:
  """The package's reader of the file, if it is whole."""
  if not path.is_file():
    raise UserError(f'{path} is not a file; give a .gguf file')
  with open(path, 'rb') as opened:
    head = opened.read(64)
  refuse_pointer(path, head)
  if not head.startswith(MAGIC):
    raise UserError(f'{path} is not GGUF: it begins with {head[:4]!r}, not {MAGIC!r}')
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    raise UserError(
      f'{path}, {path.stat().st_size} bytes, is cut short or damaged ({error}); download it again'
    ) from error
  if reader.endianess != gguf.GGUFEndian.LITTLE:
    raise UserError(f'{path} is big-endian; take the little-endian file')
  return reader
