import concurrent.futures

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.checkpoint.public import tensors
from r1jax.checkpoint.public.tensors import Tensor, bounds, read_slice
from r1jax.core.errors import UserError

SHAPES = st.lists(st.integers(0, 5), max_size=4)
ENDS = st.none() | st.integers(-6, 6)
INDICES = st.lists(st.builds(slice, ENDS, ENDS), max_size=4)
DTYPES = st.sampled_from(['float64', 'int16', 'bool', ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])


@given(SHAPES, INDICES, DTYPES, st.integers(0, 9))
def test_any_slice_is_numpys(tmp_path_factory, shape, index, dtype, offset):
  index = index[: len(shape)]
  x = np.arange(np.prod(shape, dtype=int)).astype(np.uint8).reshape(shape).astype(dtype)
  file = tmp_path_factory.mktemp('read') / 'x'
  file.write_bytes(b'-' * offset + x.tobytes() + b'-')
  found, want = read_slice(str(file), offset, x.dtype, shape, index), x[tuple(index)]
  assert (found.dtype, found.shape) == (want.dtype, want.shape)
  assert found.tobytes() == want.tobytes()


def test_no_byte_outside_the_slice_is_read(tmp_path):
  file = tmp_path / 'x'
  file.write_bytes(bytes(range(12)))  # rows 0 to 2 of five that the shape promises
  columns = read_slice(str(file), 0, np.dtype(np.uint8), (5, 4), (slice(1, 3), slice(1, 3)))
  np.testing.assert_array_equal(columns, [[5, 6], [9, 10]])
  rows = read_slice(str(file), 0, np.dtype(np.uint8), (5, 4), (slice(1, 3),))
  np.testing.assert_array_equal(rows, [[4, 5, 6, 7], [8, 9, 10, 11]])


def test_a_file_that_shrinks_while_it_is_read_is_said(tmp_path):
  file = tmp_path / 'x'
  file.write_bytes(bytes(10))
  message = f'{file} ends at byte 10, 12 were expected; it changed while it was read: start again'
  with pytest.raises(UserError) as error:
    read_slice(str(file), 0, np.dtype(np.uint8), (3, 4))
  assert str(error.value) == message


def test_threads_read_side_by_side(tmp_path):
  x = np.arange(300 * 200, dtype=np.int32).reshape(300, 200)
  (tmp_path / 'x').write_bytes(x.tobytes())
  parts = [(slice(r, r + 30), slice(c, c + 50)) for r in range(0, 300, 30) for c in (0, 50, 150)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    read = lambda part: read_slice(str(tmp_path / 'x'), 0, x.dtype, x.shape, part)
    for part, found in zip(parts, pool.map(read, parts), strict=True):
      np.testing.assert_array_equal(found, x[part])


def test_bounds():
  assert bounds((), (3, 4)) == (slice(0, 3), slice(0, 4))
  assert bounds((slice(-2, None),), (3, 4)) == (slice(1, 3), slice(0, 4))
  assert bounds((slice(9), slice(3, 1)), (3, 4)) == (slice(0, 3), slice(3, 3))
  assert bounds((), ()) == ()
  for index in ((slice(None, None, 2),), (slice(None),) * 3):
    with pytest.raises(ValueError, match='is no index into'):
      bounds(index, (3, 4))


def test_tensor_says_what_it_is():
  assert str(Tensor(np.dtype(ml_dtypes.bfloat16), (2, 3), 'x')) == 'bfloat16[2, 3]'


def test_a_git_lfs_pointer_is_refused():
  with pytest.raises(UserError) as error:
    tensors.refuse_pointer('/a/b.gguf', b'version https://git-lfs.github.com/spec/v1\noid sha256:1')
  assert str(error.value) == (
    "/a/b.gguf is a git-lfs pointer, not the file itself; run 'git lfs pull' in /a"
  )
  tensors.refuse_pointer('/a/b.gguf', b'GGUF')
