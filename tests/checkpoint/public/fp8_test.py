import concurrent.futures
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1jax.checkpoint.public import fp8
from r1jax.checkpoint.public.fp8 import BFLOAT16, FP8, Dequantized
from r1jax.checkpoint.public.tensors import Tensor
from r1jax.core.errors import UserError


class Arrays:
  """Tensors in memory; notes what is read."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    self.arrays, self.reads = arrays, []
    self.table = {name: Tensor(x.dtype, x.shape, f'{name}.file') for name, x in arrays.items()}

  def read(self, name, index=()):
    self.reads.append((name, *index))
    return self.arrays[name][tuple(index)]


def fp8_weights(seed: int, shape: tuple[int, int], block: tuple[int, int]) -> dict[str, np.ndarray]:
  """All 256 bytes, so NaN too; scales from 2^-20 to 2^20 of both signs."""
  random = np.random.default_rng(seed)
  blocks = [math.ceil(size / n) for size, n in zip(shape, block, strict=True)]
  scale = random.standard_normal(blocks) * 2.0 ** random.integers(-20, 20, blocks)
  return {
    'w.weight': random.integers(0, 256, shape, np.uint8).view(FP8),
    'w.weight_scale_inv': scale.astype(np.float32),
  }


def by_torch(arrays: dict[str, np.ndarray], block: tuple[int, int]) -> np.ndarray:
  """The bfloat16 weights as torch makes them, bits as uint16."""
  weight = torch.from_numpy(arrays['w.weight'].view(np.uint8)).view(torch.float8_e4m3fn)
  scale = torch.from_numpy(arrays['w.weight_scale_inv'])
  scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
  found = weight.float() * scale[: weight.shape[0], : weight.shape[1]]
  return found.bfloat16().view(torch.uint16).numpy()


def assert_bits_equal(found: np.ndarray, want_bits: np.ndarray) -> None:
  """Bit for bit; any NaN equals any (torch makes 0xffff of all, ml_dtypes keeps the sign)."""
  assert found.dtype == BFLOAT16
  want = want_bits.view(BFLOAT16)
  nan = np.isnan(want)
  np.testing.assert_array_equal(np.isnan(found), nan)
  np.testing.assert_array_equal(found.view(np.uint16)[~nan], want_bits[~nan])


@given(
  st.integers(0, 1000),
  st.tuples(st.integers(1, 40), st.integers(1, 40)),
  st.sampled_from([(8, 8), (8, 16), (3, 5), (64, 64)]),
  st.data(),
)
def test_any_slice_is_torchs(seed, shape, block, data):
  arrays = fp8_weights(seed, shape, block)
  ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
  index = tuple(slice(*pair) for pair in ends)[: data.draw(st.integers(0, 2))]
  found = Dequantized(Arrays(arrays), block).read('w.weight', index)
  assert_bits_equal(found, by_torch(arrays, block)[index])


def test_blocks_of_128_and_more_than_one_chunk():
  arrays = fp8_weights(0, (300, 900), (128, 128))
  want = by_torch(arrays, (128, 128))
  tensors = Dequantized(Arrays(arrays))
  assert_bits_equal(tensors.read('w.weight'), want)
  assert_bits_equal(
    tensors.read('w.weight', (slice(100, 290), slice(1, 899))), want[100:290, 1:899]
  )


def test_many_narrow_blocks():
  arrays = fp8_weights(0, (3, 257 * 2), (2, 2))
  assert_bits_equal(Dequantized(Arrays(arrays), (2, 2)).read('w.weight'), by_torch(arrays, (2, 2)))


def test_only_the_slice_and_the_scales_it_touches_are_read():
  tensors = Arrays(fp8_weights(0, (40, 40), (8, 8)))
  Dequantized(tensors, (8, 8)).read('w.weight', (slice(7, 17), slice(8, 16)))
  assert tensors.reads == [
    ('w.weight_scale_inv', slice(0, 3), slice(1, 2)),
    ('w.weight', slice(7, 17), slice(8, 16)),
  ]


def test_infinite_scales_are_torchs():
  arrays = fp8_weights(0, (16, 256), (16, 64))
  arrays['w.weight_scale_inv'] = np.float32([[np.inf, -np.inf, np.nan, 3e38]])
  assert_bits_equal(
    Dequantized(Arrays(arrays), (16, 64)).read('w.weight'), by_torch(arrays, (16, 64))
  )


def test_scales_are_hidden_and_the_rest_passes_through():
  other = {
    'norm.weight': np.float32([1, 2, 3]).astype(BFLOAT16),
    'bias': np.arange(6, dtype=np.float32).reshape(2, 3),
  }
  arrays = {**fp8_weights(0, (4, 4), (128, 128)), **other}
  tensors = Dequantized(Arrays(arrays))
  assert {name: str(tensor) for name, tensor in tensors.table.items()} == {
    'w.weight': 'bfloat16[4, 4]',
    'norm.weight': 'bfloat16[3]',
    'bias': 'float32[2, 3]',
  }
  assert tensors.table['w.weight'].file == 'w.weight.file'
  np.testing.assert_array_equal(tensors.read('norm.weight'), other['norm.weight'])
  np.testing.assert_array_equal(tensors.read('bias', (slice(1, 2),)), [[3, 4, 5]])


def test_threads_give_the_same():
  arrays = fp8_weights(0, (256, 512), (128, 128))
  tensors, want = Dequantized(Arrays(arrays)), by_torch(arrays, (128, 128))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    rows = [slice(r, r + 24) for r in range(0, 240, 8)]
    for part, found in zip(rows, pool.map(lambda r: tensors.read('w.weight', (r,)), rows)):
      assert_bits_equal(found, want[part])


WEIGHT, SCALE = np.zeros((200, 300), FP8), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
  'arrays, message',
  [
    (
      {'a.weight': WEIGHT},
      "a.weight.file: fp8 weight 'a.weight' has no scale ('a.weight_scale_inv'); take the "
      'checkpoint as its maker published it',
    ),
    (
      {'a.weight_scale_inv': SCALE},
      "a.weight_scale_inv.file: scale 'a.weight_scale_inv' has no fp8 weight (no 'a.weight' of "
      'float8_e4m3fn); take the checkpoint as its maker published it',
    ),
    (
      {'a.weight': WEIGHT.astype(np.float32), 'a.weight_scale_inv': SCALE},
      "a.weight_scale_inv.file: scale 'a.weight_scale_inv' has no fp8 weight (no 'a.weight' of "
      'float8_e4m3fn); take the checkpoint as its maker published it',
    ),
    (
      {'a.weight': WEIGHT, 'a.weight_scale_inv': SCALE.T},
      "a.weight_scale_inv.file: scale 'a.weight_scale_inv' is float32[3, 2], a weight of "
      'float8_e4m3fn[200, 300] in blocks of 128 x 128 has float32[2, 3]; check weight_block_size '
      'of config.json',
    ),
    (
      {'a.weight': WEIGHT, 'a.weight_scale_inv': SCALE.astype(np.float16)},
      "a.weight_scale_inv.file: scale 'a.weight_scale_inv' is float16[2, 3], a weight of "
      'float8_e4m3fn[200, 300] in blocks of 128 x 128 has float32[2, 3]; check weight_block_size '
      'of config.json',
    ),
  ],
)
def test_weights_and_scales_that_do_not_fit(arrays, message):
  with pytest.raises(UserError) as error:
    Dequantized(Arrays(arrays))
  assert str(error.value) == message


def test_a_weight_that_is_no_matrix():
  arrays = {'a.weight': np.zeros((2, 2, 2), FP8), 'a.weight_scale_inv': np.ones((1, 1), np.float32)}
  with pytest.raises(UserError, match=r'a weight of float8_e4m3fn\[2, 2, 2\] in blocks of 128'):
    Dequantized(Arrays(arrays))


def test_every_code_is_what_ml_dtypes_makes_of_it():
  codes = np.arange(256, dtype=np.uint8)[None].view(FP8)
  found = fp8.dequantize(codes, np.ones((1, 2), np.float32))
  np.testing.assert_array_equal(found.astype(np.float32), codes.astype(np.float32))
  zeros = np.signbit(found.astype(np.float32)[0, [0, 128]])
  assert zeros.tolist() == [False, True]


def test_a_leaf_that_is_transposed_is_not_copied():
  """Ours are [in, out] or [in, heads, width]: in memory order as they come."""
  found = fp8.dequantize(np.zeros((256, 384), FP8), np.ones((2, 3), np.float32))
  assert found.shape == (256, 384) and found.T.flags.c_contiguous
  assert found.reshape(4, 64, 384).transpose(2, 0, 1).flags.c_contiguous


def test_scales_may_be_bfloat16_as_those_of_qwen_3_are():
  arrays = fp8_weights(3, (6, 8), (4, 4))
  arrays['w.weight_scale_inv'] = arrays['w.weight_scale_inv'].astype(BFLOAT16)
  wide = arrays | {'w.weight_scale_inv': arrays['w.weight_scale_inv'].astype(np.float32)}
  assert_bits_equal(Dequantized(Arrays(arrays), (4, 4)).read('w.weight'), by_torch(wide, (4, 4)))
