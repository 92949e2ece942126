"""The header of a safetensors file: which tensors it holds and where.

    8 bytes    length of the header, little-endian
    header     JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, …}
    data       the tensors' bytes, row-major, without a hole

Format: https://github.com/huggingface/safetensors. The package itself gives no float8 to NumPy
(0.8.0 asks numpy for a float8_e4m3fn) and writes whole files from memory only; it is the oracle of
the tests. Headers made here are byte for byte those that it makes.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from r1jax.checkpoint.public.tensors import Tensor, refuse_pointer
from r1jax.core.errors import UserError

DTYPES = {  # in the order in which the package lays tensors out, so that all of them are aligned
  'U64': np.uint64, 'I64': np.int64, 'F64': np.float64,
  'F32': np.float32, 'U32': np.uint32, 'I32': np.int32,
  'BF16': ml_dtypes.bfloat16, 'F16': np.float16, 'U16': np.uint16, 'I16': np.int16,
  'F8_E8M0': ml_dtypes.float8_e8m0fnu, 'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
ORDER = list(CODES)


def read(file: pathlib.Path) -> dict[str, tuple[Tensor, int]]:
  """{name: (what it is, offset of its first byte in the file)}, in the order of the data."""
  size = file.stat().st_size
  with open(file, 'rb') as opened:
    head = opened.read(64)
    refuse_pointer(file, head)
    start = 8 + int.from_bytes(head[:8], 'little')
    if size < start:
      raise UserError(
        f'{file} has {size} bytes, its header alone should have {start}: cut short, or no '
        'safetensors; download it again'
      )
    opened.seek(8)
    header = parse_json(f'the header of {file}', opened.read(start - 8))
  header.pop('__metadata__', None)
  entries = [(*_parse(file, name, entry), name) for name, entry in header.items()]
  found, here = {}, start
  for begin, end, tensor, name in sorted(entries, key=lambda entry: entry[:2]):
    if start + begin != here:
      raise UserError(
        f"{file}: tensor '{name}' begins at byte {begin} of the data, not at {here - start}: "
        'tensors overlap or leave a hole; download it again'
      )
    found[name], here = (tensor, here), start + end
    if here > size:
      should = start + max(last for _, last, *_ in entries)
      raise UserError(
        f"{file} has {size} bytes, should have {should}: it ends in tensor '{name}'; download it "
        'again'
      )
  if here != size:
    raise UserError(f'{file} has {size} bytes, should have {here}; download it again')
  return found


def _parse(file: pathlib.Path, name: str, entry: Any) -> tuple[int, int, Tensor]:
  """(begin, end, what it is) of a header's entry."""
  try:
    code, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
    sizes = (*shape, begin, end)
    sound = type(code) is str and all(type(n) is int and n >= 0 for n in sizes)
  except (KeyError, TypeError, ValueError):
    sound = False
  if not sound:
    raise UserError(
      f"{file}: tensor '{name}' has no dtype, shape and two data_offsets in the header; download "
      'it again'
    )
  if code not in DTYPES:
    raise UserError(
      f"{file}: tensor '{name}' is of dtype {code}; known: {', '.join(DTYPES)}; convert it first"
    )
  dtype = np.dtype(DTYPES[code])
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise UserError(
      f"{file}: tensor '{name}', {code}{shape}, should have {math.prod(shape) * dtype.itemsize} "
      f'bytes, its header says {end - begin}; download it again'
    )
  return begin, end, Tensor(dtype, tuple(shape), str(file))


def parse_json(what: str, text: bytes) -> dict[str, Any]:
  """The JSON object of the text; `what` holds it."""
  try:
    value = json.loads(text)
  except ValueError:
    value = None
  if not isinstance(value, dict):
    raise UserError(f'{what} is not a JSON object: damaged, or no safetensors; download it again')
  return value


def make(
  tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
  """(first bytes of the file, offset of each tensor in it, its size)."""
  header: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  begins, end = {}, 0
  for name in sorted(tensors, key=lambda n: (ORDER.index(np.dtype(tensors[n][0])), n)):
    dtype, shape = tensors[name]
    begins[name], end = end, end + nbytes(dtype, shape)
    offsets = [begins[name], end]
    header[name] = {'dtype': CODES[np.dtype(dtype)], 'shape': [*shape], 'data_offsets': offsets}
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  start = 8 + len(text)
  places = {name: start + begin for name, begin in begins.items()}
  return len(text).to_bytes(8, 'little') + text, places, start + end


def nbytes(dtype: np.dtype, shape: Sequence[int]) -> int:
  """How many bytes a tensor has."""
  return math.prod(shape) * np.dtype(dtype).itemsize
