import concurrent.futures
import json
import re
import resource

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from r1jax.checkpoint.public.safetensors import INDEX, WHOLE, Safetensors, Writer
from r1jax.core.errors import UserError

ONE, TWO = 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n'
TORCH = {
  np.float64: torch.float64,
  np.float32: torch.float32,
  np.float16: torch.float16,
  ml_dtypes.bfloat16: torch.bfloat16,
  ml_dtypes.float8_e4m3fn: torch.float8_e4m3fn,
  ml_dtypes.float8_e5m2: torch.float8_e5m2,
  np.int64: torch.int64,
  np.int32: torch.int32,
  np.int16: torch.int16,
  np.int8: torch.int8,
  np.uint8: torch.uint8,
  np.bool_: torch.bool,
}


def arrays(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """One array of random bytes for every dtype."""
  random, found = np.random.default_rng(0), {}
  for dtype in map(np.dtype, TORCH):
    top = 2 if dtype == np.bool_ else 256
    data = random.integers(0, top, (*shape, dtype.itemsize), np.uint8)
    found[f'{dtype}.{len(found)}'] = data.view(dtype)[..., 0]
  return found


def as_torch(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
  """The same bytes as torch's tensors."""
  make = lambda x: torch.frombuffer(bytearray(x.tobytes()), dtype=TORCH[x.dtype.type])
  return {
    name: make(x).reshape(x.shape) if x.size else torch.empty(x.shape, dtype=TORCH[x.dtype.type])
    for name, x in found.items()
  }


def declared(found: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
  """What a Writer is told of them."""
  return {name: (x.dtype, x.shape) for name, x in found.items()}


def write(folder, found, **kwargs) -> None:
  """Writes all arrays."""
  with Writer(folder, declared(found), **kwargs) as writer:
    for name, x in found.items():
      writer.write(name, x)


def assert_same(found: np.ndarray, want: np.ndarray) -> None:
  """Dtype, shape and bytes are equal."""
  assert (found.dtype, found.shape) == (want.dtype, want.shape)
  same = found.tobytes() == want.tobytes()  # pytest's own diff of bytes takes minutes
  assert same


@pytest.mark.parametrize('shape', [(3, 5), (), (0, 4), (4, 0), (2, 3, 2)])
def test_every_dtype_is_read_as_torch_wrote_it(tmp_path, shape):
  want = arrays(shape)
  safetensors.torch.save_file(as_torch(want), tmp_path / 'any.safetensors', {'format': 'pt'})
  found = Safetensors(tmp_path)
  assert {n: (t.dtype, t.shape, t.file) for n, t in found.table.items()} == {
    n: (x.dtype, x.shape, str(tmp_path / 'any.safetensors')) for n, x in want.items()
  }
  for name, x in want.items():
    assert_same(found.read(name), x)
    if x.ndim > 1:
      assert_same(found.read(name, (slice(1, 3), slice(1, 2))), x[1:3, 1:2])


@pytest.mark.parametrize('shape', [(3, 5), (), (0, 4), (4, 0), (2, 3, 2)])
def test_the_file_is_byte_for_byte_torchs(tmp_path, shape):
  want = arrays(shape)
  write(tmp_path / 'ours', want)
  safetensors.torch.save_file(as_torch(want), tmp_path / WHOLE, {'format': 'pt'})
  assert [path.name for path in (tmp_path / 'ours').iterdir()] == [WHOLE]
  same = (tmp_path / 'ours' / WHOLE).read_bytes() == (tmp_path / WHOLE).read_bytes()
  assert same


def test_shards_are_named_and_indexed_as_hugging_face_does(tmp_path):
  want = {f'layer.{i}': np.full((2, 8), i, np.float32) for i in (2, 0, 1)}  # 64 bytes each
  want |= {'big': np.arange(99, dtype=np.float32), 'small': np.float32(1)}
  write(tmp_path, want, shard_bytes=130)
  shards = [f'model-0000{i}-of-00004.safetensors' for i in (1, 2, 3, 4)]
  assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, INDEX]
  index = json.loads((tmp_path / INDEX).read_text())
  assert index == {
    'metadata': {'total_size': 3 * 64 + 99 * 4 + 4},
    'weight_map': {
      'big': shards[2],
      'layer.0': shards[0],
      'layer.1': shards[1],
      'layer.2': shards[0],
      'small': shards[3],
    },
  }
  for name, shard in index['weight_map'].items():
    assert_same(safetensors.numpy.load_file(tmp_path / shard)[name], np.asarray(want[name]))
  assert list(index['weight_map']) == sorted(want)
  found = Safetensors(tmp_path)
  assert found.table.keys() == want.keys()
  for name, x in want.items():
    assert_same(found.read(name), np.asarray(x))


def test_blocks_of_rows_in_any_order_by_several_threads(tmp_path):
  x, y = np.arange(100 * 7, dtype=np.int16).reshape(100, 7), np.float32(3)
  with Writer(tmp_path, declared({'x': x, 'y': np.asarray(y)})) as writer:
    writer.write('y', np.asarray(y))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      starts = [*range(90, -1, -10)]
      list(pool.map(lambda r: writer.write_slice('x', r, x[r : r + 10]), starts))
  assert_same(Safetensors(tmp_path).read('x'), x)
  assert_same(Safetensors(tmp_path).read('y'), np.asarray(y))


def test_an_array_that_is_no_contiguous_block_is_written_as_it_reads(tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
  write(tmp_path, {'x': x})
  np.testing.assert_array_equal(Safetensors(tmp_path).read('x'), [[0, 4, 8], [2, 6, 10]])


@pytest.mark.parametrize('blocks', [[], [(0, 2)], [(0, 2), (3, 4)], [(0, 3), (2, 4)], [(0, 4)] * 2])
def test_rows_missing_or_written_twice(tmp_path, blocks):
  writer = Writer(tmp_path, {'a.weight': (np.float32, (4, 2)), 'b': (np.float32, (0, 2))})
  for start, stop in blocks:
    writer.write_slice('a.weight', start, np.zeros((stop - start, 2), np.float32))
  with pytest.raises(ValueError, match=f'{tmp_path}: not every row of a.weight was written once'):
    writer.close()
  assert [*tmp_path.iterdir()] == []


def test_what_does_not_fit_is_not_written(tmp_path):
  with Writer(tmp_path, {'a': (np.float32, (4, 2))}) as writer:
    for start, bad in ((0, 'f8[4,2]'), (0, 'f4[4,3]'), (1, 'f4[4,2]'), (-1, 'f4[2,2]')):
      shape = [int(bad[3]), int(bad[5])]
      with pytest.raises(ValueError, match=r"'a' is float32\[4, 2\]: no place"):
        writer.write_slice('a', start, np.zeros(shape, bad[:2]))
    with pytest.raises(ValueError, match=r"'a' is \[4, 2\], not \[2, 4\]"):
      writer.write('a', np.zeros((2, 4), np.float32))
    writer.write('a', np.ones((4, 2), np.float32))
  np.testing.assert_array_equal(Safetensors(tmp_path).read('a'), np.ones((4, 2)))


def test_nothing_has_its_name_before_all_is_there_and_an_exception_leaves_nothing(tmp_path):
  want = {'a': np.zeros(4, np.float32), 'b': np.zeros(4, np.float32)}
  stop = pytest.raises(RuntimeError, match='stop')
  with stop, Writer(tmp_path, declared(want), shard_bytes=16) as writer:
    writer.write('a', want['a'])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'{ONE}.tmp', f'{TWO}.tmp']
    raise RuntimeError('stop')
  assert [*tmp_path.iterdir()] == []


def test_a_closed_writer_keeps_its_files(tmp_path):
  later = pytest.raises(RuntimeError, match='later')
  with later, Writer(tmp_path, {'a': (np.float32, (0,))}) as writer:
    writer.close()
    raise RuntimeError('later')
  assert [path.name for path in tmp_path.iterdir()] == [WHOLE]


def test_what_a_killed_writer_left_goes(tmp_path):
  (tmp_path / 'model-00001-of-00002.safetensors.tmp').write_text('half')
  write(tmp_path, {'a': np.zeros(4, np.float32)})
  assert [path.name for path in tmp_path.iterdir()] == [WHOLE]


@pytest.mark.parametrize('name', [WHOLE, INDEX, 'consolidated.safetensors'])
def test_a_folder_that_holds_a_checkpoint_is_left_alone(tmp_path, name):
  (tmp_path / name).write_text('mine')
  with pytest.raises(UserError) as error:
    Writer(tmp_path, {'a': (np.float32, (4,))})
  assert str(error.value) == f'{tmp_path / name} is there already; remove it or name another folder'
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_not_enough_disk(tmp_path):
  with pytest.raises(UserError) as error:
    Writer(tmp_path / 'new' / 'folder', {'a': (np.float32, (1 << 50,))})
  folder = re.escape(f'{tmp_path / "new" / "folder"}')
  assert re.fullmatch(
    rf'{folder} needs 4194304\.0 GiB, \d+\.\d GiB are free; free space or name a folder on another '
    'disk',
    str(error.value),
  )
  assert [*tmp_path.iterdir()] == []


def test_a_dtype_that_safetensors_does_not_have(tmp_path):
  with pytest.raises(UserError) as error:
    Writer(tmp_path / 'new', {'a': (ml_dtypes.int4, (4,))})
  assert str(error.value).startswith(
    f"tensor 'a' is int4, which the safetensors of {tmp_path / 'new'} cannot hold; known: uint64, "
  )
  assert [*tmp_path.iterdir()] == []


def test_a_write_that_the_system_refuses_is_one_line(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  writer = Writer(tmp_path, {'a.weight': (np.float32, (1 << 12,))})
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    with pytest.raises(UserError) as error:
      writer.write('a.weight', np.zeros(1 << 12, np.float32))
    with pytest.raises(UserError) as start:
      Writer(tmp_path / 'b', {'a.weight': (np.float32, (1 << 12,))})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  end = 'could not be written (File too large); free space and start the same command again'
  assert str(error.value) == f"{tmp_path / WHOLE}.tmp: tensor 'a.weight' {end}"
  assert str(start.value) == f'{tmp_path / "b" / WHOLE}.tmp {end}'
  assert [*(tmp_path / 'b').iterdir()] == []
  writer.abort()


def two_shards(folder) -> dict[str, str]:
  """Writes two shards of one tensor each; their index."""
  write(folder, {'a': np.zeros(4, np.float32), 'b': np.ones(4, np.float32)}, shard_bytes=16)
  return json.loads((folder / INDEX).read_text())['weight_map']


def reindex(folder, shards) -> None:
  """Replaces the index."""
  (folder / INDEX).write_text(json.dumps({'weight_map': shards}))


@pytest.mark.parametrize(
  'spoil, message',
  [
    (
      lambda f: (f / TWO).unlink(),
      f'{{f}}/{INDEX} names {TWO}, which is not there; download it as well',
    ),
    (
      lambda f: reindex(f, {'a': ONE, 'b': TWO, 'c': TWO}),
      f"{{f}}/{INDEX} has tensor 'c' in {TWO}, which lacks it; download both again",
    ),
    (
      lambda f: reindex(f, {'b': TWO, 'x': ONE}),
      f"{{f}}/{ONE} holds tensor 'a', but {INDEX} does not name it; download both again",
    ),
    (
      lambda f: reindex(f, {'a': TWO, 'b': ONE}),
      f"{{f}}/{ONE} holds tensor 'a', but {INDEX} has it in {TWO}; download both again",
    ),
    (
      lambda f: (f / TWO).write_bytes((f / ONE).read_bytes()),
      f"tensor 'a' is in {{f}}/{ONE} and in {{f}}/{TWO}; remove the file that does not belong",
    ),
    (
      lambda f: (f / INDEX).unlink(),
      f'{{f}} holds {ONE}, {TWO} but no {INDEX}; download that as well',
    ),
    (
      lambda f: [(f / name).unlink() for name in (INDEX, TWO)],
      f'{{f}} holds {ONE} but no {INDEX}; download that as well',
    ),
    (
      lambda f: (f / INDEX).write_text('{'),
      f'{{f}}/{INDEX} is not a JSON object: damaged, or no safetensors; download it again',
    ),
    (
      lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'),
      f"{{f}}/{INDEX} has no 'weight_map' of tensors to files; download it again",
    ),
    (
      lambda f: (f / INDEX).write_bytes(POINTER),
      f"{{f}}/{INDEX} is a git-lfs pointer, not the file itself; run 'git lfs pull' in {{f}}",
    ),
    (
      lambda f: (f / TWO).write_bytes(POINTER),
      f"{{f}}/{TWO} is a git-lfs pointer, not the file itself; run 'git lfs pull' in {{f}}",
    ),
  ],
)
def test_shards_and_index_that_disagree(tmp_path, spoil, message):
  assert two_shards(tmp_path) == {'a': ONE, 'b': TWO}
  spoil(tmp_path)
  with pytest.raises(UserError) as error:
    Safetensors(tmp_path)
  assert str(error.value) == message.format(f=tmp_path)


def test_a_folder_without_safetensors(tmp_path):
  with pytest.raises(UserError) as error:
    Safetensors(tmp_path)
  assert str(error.value) == f'{tmp_path} holds no *.safetensors; give the folder of a checkpoint'
  with pytest.raises(UserError) as error:
    Safetensors(tmp_path / 'none')
  assert str(error.value) == (
    f'{tmp_path / "none"} is not a folder; give the one that holds {WHOLE} or {INDEX}'
  )


def test_the_whole_model_is_taken_where_other_files_lie_beside(tmp_path):
  write(tmp_path, {'a': np.zeros(4, np.float32)})
  safetensors.numpy.save_file({'b': np.zeros(4)}, tmp_path / 'consolidated.safetensors')
  assert [*Safetensors(tmp_path).table] == ['a']
