import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from r1jax.checkpoint.public import header
from r1jax.core.errors import UserError

DTYPES = st.sampled_from(list(header.CODES))
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(st.dictionaries(st.text(min_size=1), st.tuples(DTYPES, SHAPES), max_size=8))
def test_headers_are_those_of_the_package(tmp_path_factory, tensors):
  tensors = {name: what for name, what in tensors.items() if name != '__metadata__'}
  oracle = safetensors.numpy.save({n: np.zeros(s, d) for n, (d, s) in tensors.items()}, {'a': 'b'})
  first, offsets, size = header.make(tensors, {'a': 'b'})
  assert first + bytes(size - len(first)) == oracle
  file = tmp_path_factory.mktemp('header') / 'x.safetensors'
  file.write_bytes(oracle)
  found = header.read(file)
  assert {name: (t.dtype, t.shape) for name, (t, _) in found.items()} == tensors
  assert {name: offset for name, (_, offset) in found.items()} == offsets


def file_of(tmp_path, entries, data=b'', text=None):
  """A file whose header holds {name: (dtype, shape, begin, end)}."""
  made = {n: {'dtype': d, 'shape': s, 'data_offsets': [*e]} for n, (d, s, *e) in entries.items()}
  text = json.dumps(made).encode() if text is None else text
  (tmp_path / 'x.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + data)
  return len(text) + 8


@pytest.mark.parametrize(
  'entries, length, message',
  [
    (
      {'a': ('U8', [4], 0, 4), 'b': ('F32', [2, 3], 4, 28)},
      20,
      "{file} has {size} bytes, should have {should}: it ends in tensor 'b'; download it again",
    ),
    (
      {'a': ('U8', [4], 0, 4)},
      9,
      '{file} has {size} bytes, should have {should}; download it again',
    ),
    (
      {'a': ('U8', [4], 0, 4), 'b': ('U8', [4], 2, 6)},
      6,
      "{file}: tensor 'b' begins at byte 2 of the data, not at 4: tensors overlap or leave a hole; "
      'download it again',
    ),
    (
      {'a': ('U8', [4], 1, 5)},
      5,
      "{file}: tensor 'a' begins at byte 1 of the data, not at 0: tensors overlap or leave a hole; "
      'download it again',
    ),
    (
      {'a': ('BF16', [2, 3], 0, 6)},
      6,
      "{file}: tensor 'a', BF16[2, 3], should have 12 bytes, its header says 6; download it again",
    ),
    (
      {'a': ('F4', [2], 0, 1)},
      1,
      "{file}: tensor 'a' is of dtype F4; known: U64, I64, F64, F32, U32, I32, BF16, F16, U16, "
      'I16, F8_E8M0, F8_E4M3, F8_E5M2, I8, U8, BOOL; convert it first',
    ),
  ],
)
def test_a_header_that_does_not_fit(tmp_path, entries, length, message):
  start = file_of(tmp_path, entries, bytes(length))
  file = tmp_path / 'x.safetensors'
  should = start + max(end for *_, end in entries.values())
  with pytest.raises(UserError) as error:
    header.read(file)
  assert str(error.value) == message.format(file=file, size=start + length, should=should)


@pytest.mark.parametrize(
  'entry',
  [
    {'dtype': 'U8', 'shape': [1]},
    {'dtype': 'U8', 'shape': [1], 'data_offsets': [0]},
    {'dtype': 'U8', 'shape': [-1, -1], 'data_offsets': [0, 1]},
    {'dtype': 'U8', 'shape': 'one', 'data_offsets': [0, 1]},
    {'dtype': 'U8', 'shape': [True], 'data_offsets': [0, 1]},
    {'dtype': ['U8'], 'shape': [1], 'data_offsets': [0, 1]},
    None,
  ],
)
def test_an_entry_that_is_none(tmp_path, entry):
  file_of(tmp_path, {}, b'1', json.dumps({'a': entry}).encode())
  with pytest.raises(UserError) as error:
    header.read(tmp_path / 'x.safetensors')
  assert str(error.value) == (
    f"{tmp_path / 'x.safetensors'}: tensor 'a' has no dtype, shape and two data_offsets in the "
    'header; download it again'
  )


@pytest.mark.parametrize('text', [b'{"a": ', b'[]', b'\xff\xfe', b''])
def test_a_header_that_is_no_json_object(tmp_path, text):
  file_of(tmp_path, {}, b'', text)
  with pytest.raises(UserError) as error:
    header.read(tmp_path / 'x.safetensors')
  assert str(error.value) == (
    f'the header of {tmp_path / "x.safetensors"} is not a JSON object: damaged, or no safetensors; '
    'download it again'
  )


@pytest.mark.parametrize(
  'content, should', [(b'', 8), (b'\x09', 17), (b'\x09\0\0\0\0\0\0\0{}', 17), (b'PK\3\4' * 5, None)]
)
def test_a_header_longer_than_the_file(tmp_path, content, should):
  file = tmp_path / 'x.safetensors'
  file.write_bytes(content)
  should = 8 + int.from_bytes(content[:8], 'little') if should is None else should
  with pytest.raises(UserError) as error:
    header.read(file)
  assert str(error.value) == (
    f'{file} has {len(content)} bytes, its header alone should have {should}: cut short, or no '
    'safetensors; download it again'
  )


def test_a_git_lfs_pointer(tmp_path):
  file = tmp_path / 'x.safetensors'
  file.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n')
  with pytest.raises(UserError, match=re.escape(f'{file} is a git-lfs pointer, not the file')):
    header.read(file)


def test_the_order_of_names_decides_among_equal_dtypes():
  tensors = {'b': (ml_dtypes.bfloat16, (1,)), 'a': (np.float16, (1,)), 'c': (np.float32, (1,))}
  first, offsets, size = header.make({**tensors, 'B': tensors['b']}, {})
  start = len(first)
  assert offsets == {'c': start, 'B': start + 4, 'b': start + 6, 'a': start + 8}
  assert (start % 8, size) == (0, start + 10)
