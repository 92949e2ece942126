"""A folder of safetensors, read by slice and streamed out.

Reads one file, or the shards that an index names; writes what the package `safetensors` would
write, byte for byte, in shards named as Hugging Face names them. header.py has the format, and says
why it is not left to the package.

Cost: opening reads every shard's header and no data; tensors.py says what reading costs. Writing is
one system call a block of rows, at its place.
"""

import contextlib
import io
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from r1jax.checkpoint.errors import reason, remedy
from r1jax.checkpoint.public import header
from r1jax.checkpoint.public.tensors import Index, Tensor, read_slice, refuse_pointer
from r1jax.core import files
from r1jax.core.errors import UserError

WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
SHARD = re.compile(r'-\d{5}-of-\d{5}\.safetensors$')
TEMPORARY = '.safetensors.tmp'  # ends what a writer has not completed
METADATA = {'format': 'pt'}
Declared = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


class Safetensors:
  """The tensors of a folder; whatever is wrong with its files is said at once."""

  def __init__(self, folder: str | os.PathLike):
    folder = pathlib.Path(folder).expanduser()
    shards = _read_index(folder)
    self.table: dict[str, Tensor] = {}
    self._offsets: dict[str, int] = {}
    for name in [_only_file(folder)] if shards is None else sorted(set(shards.values())):
      if not (folder / name).is_file():
        raise UserError(f'{folder / INDEX} names {name}, which is not there; download it as well')
      for tensor, (what, offset) in header.read(folder / name).items():
        if tensor in self.table:
          raise UserError(
            f"tensor '{tensor}' is in {self.table[tensor].file} and in {what.file}; remove the "
            'file that does not belong'
          )
        self.table[tensor], self._offsets[tensor] = what, offset
    if shards is not None:
      _check_index(folder, shards, self.table)

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """A slice of a tensor; from any thread."""
    tensor = self.table[name]
    return read_slice(tensor.file, self._offsets[name], tensor.dtype, tensor.shape, index)


class Place(NamedTuple):
  """Where a tensor is written."""

  file: pathlib.Path
  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]


class Writer:
  """Writes tensors of known dtypes and shapes in any order, by any threads, in blocks of rows.

  A context manager. Files have temporary names until all is there, the index comes last, and an
  exception removes whatever was begun. shard_bytes: a larger tensor gets a shard of its own.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    tensors: Declared,
    shard_bytes: int = 5 << 30,
    metadata: Mapping[str, str] = METADATA,
  ):
    self.folder = pathlib.Path(folder).expanduser()
    _check_dtypes(self.folder, tensors)
    sizes = {name: header.nbytes(*what) for name, what in tensors.items()}
    self._bytes, self._shards = sum(sizes.values()), _split(sizes, shard_bytes)
    self._places: dict[str, Place] = {}
    self._spans: dict[str, list[tuple[int, int]]] = {name: [] for name in tensors}
    with told(f'{self.folder}'):
      _make_room(self.folder, self._bytes)
    try:
      for shard, names in self._shards.items():
        self._begin(self._temporary(shard), {name: tensors[name] for name in names}, metadata)
    except BaseException:
      self.abort()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type | None, *_: Any) -> None:
    self.close() if kind is None else self.abort()

  def write(self, name: str, array: np.ndarray) -> None:
    """Writes a whole tensor."""
    if array.shape != self._places[name].shape:
      raise ValueError(f"'{name}' is {[*self._places[name].shape]}, not {[*array.shape]}")
    self.write_slice(name, 0, array if array.ndim else array[None])

  def write_slice(self, name: str, start_row: int, rows: np.ndarray) -> None:
    """Writes rows [N, …] of a tensor, that is of its first axis; no row twice."""
    place = self._places[name]
    size, *row = place.shape or (1,)
    stop = start_row + len(rows)
    if rows.dtype != place.dtype or [*rows.shape[1:]] != row or not 0 <= start_row <= stop <= size:
      raise ValueError(
        f"'{name}' is {place.dtype}{[*place.shape]}: no place for {rows.dtype}{[*rows.shape]} at "
        f'row {start_row}'
      )
    offset = place.offset + start_row * math.prod(row) * place.dtype.itemsize
    with told(f"{place.file}: tensor '{name}'"), open(place.file, 'r+b', buffering=0) as file:
      file.seek(offset)
      _write_all(file, np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
    self._spans[name].append((start_row, stop))

  def close(self) -> None:
    """Completes the files; ValueError when a row is missing or was written twice."""
    try:
      rows = {name: (place.shape or (1,))[0] for name, place in self._places.items()}
      wrong = [name for name, spans in self._spans.items() if not _tile(spans, rows[name])]
      if wrong:
        raise ValueError(f'{self.folder}: not every row of {", ".join(wrong)} was written once')
      with told(f'{self.folder}'):
        self._complete()
    except BaseException:
      self.abort()
      raise
    self._shards = {}  # nothing is left to abort

  def abort(self) -> None:
    """Removes the files of a writer that is not closed."""
    for shard in self._shards:
      self._temporary(shard).unlink(missing_ok=True)
      (self.folder / shard).unlink(missing_ok=True)

  def _temporary(self, shard: str) -> pathlib.Path:
    return self.folder / f'{shard}.tmp'

  def _begin(self, file: pathlib.Path, tensors: Declared, metadata: Mapping[str, str]) -> None:
    """Makes a file of full length with its header, and notes where its tensors go."""
    first, offsets, size = header.make(tensors, metadata)
    for name, (dtype, shape) in tensors.items():
      self._places[name] = Place(file, offsets[name], np.dtype(dtype), tuple(shape))
    with told(f'{file}'), open(file, 'wb') as opened:
      opened.write(first)
      opened.truncate(size)

  def _complete(self) -> None:
    for shard in self._shards:
      _sync(self._temporary(shard))
    for shard in self._shards:
      self._temporary(shard).replace(self.folder / shard)
    if len(self._shards) > 1:
      shards = {name: shard for shard, names in self._shards.items() for name in names}
      index = {'metadata': {'total_size': self._bytes}, 'weight_map': dict(sorted(shards.items()))}
      files.write_json(self.folder / INDEX, index)
    _sync(self.folder)


# Reading headers.


def _read_index(folder: pathlib.Path) -> dict[str, str] | None:
  """{tensor: shard} of the index, None without one."""
  if not folder.is_dir():
    raise UserError(f'{folder} is not a folder; give the one that holds {WHOLE} or {INDEX}')
  file = folder / INDEX
  if not file.exists():
    return None
  text = file.read_bytes()
  refuse_pointer(file, text)
  shards = header.parse_json(f'{file}', text).get('weight_map')
  if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
    raise UserError(f"{file} has no 'weight_map' of tensors to files; download it again")
  return shards


def _only_file(folder: pathlib.Path) -> str:
  """The one safetensors file of a folder without an index; `WHOLE` when it has others beside."""
  found = sorted(path.name for path in folder.glob('*.safetensors'))
  if not found:
    raise UserError(f'{folder} holds no *.safetensors; give the folder of a checkpoint')
  if WHOLE in found:
    return WHOLE
  if len(found) > 1 or SHARD.search(found[0]):
    raise UserError(f'{folder} holds {", ".join(found)} but no {INDEX}; download that as well')
  return found[0]


def _check_index(folder: pathlib.Path, shards: dict[str, str], table: dict[str, Tensor]) -> None:
  """Raises unless index and headers name the same tensors, in the same files."""
  for name, tensor in table.items():
    if name not in shards or tensor.file != str(folder / shards[name]):
      where = f'has it in {shards[name]}' if name in shards else 'does not name it'
      raise UserError(
        f"{tensor.file} holds tensor '{name}', but {INDEX} {where}; download both again"
      )
  for name in shards.keys() - table.keys():
    raise UserError(
      f"{folder / INDEX} has tensor '{name}' in {shards[name]}, which lacks it; download both again"
    )


# Writing.


def _check_dtypes(folder: pathlib.Path, tensors: Declared) -> None:
  for name, (dtype, _) in tensors.items():
    if np.dtype(dtype) not in header.CODES:
      raise UserError(
        f"tensor '{name}' is {np.dtype(dtype)}, which the safetensors of {folder} cannot hold; "
        f'known: {", ".join(map(str, header.CODES))}'
      )


def _split(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
  """{file: its tensors}, filled in order."""
  shards, room = [[]], limit
  for name, size in sizes.items():
    if size > room and shards[-1]:
      shards.append([])
      room = limit
    shards[-1].append(name)
    room -= size
  n = len(shards)
  names = [f'model-{i:05}-of-{n:05}.safetensors' for i in range(1, n + 1)] if n > 1 else [WHOLE]
  return dict(zip(names, shards, strict=True))


def _make_room(folder: pathlib.Path, need: int) -> None:
  """Makes the folder; raises when it holds a checkpoint or the disk has not `need` bytes."""
  found = sorted(folder.glob('*.safetensors*'))
  whole = [path for path in found if path.suffix != '.tmp']
  if whole:
    raise UserError(f'{whole[0]} is there already; remove it or name another folder')
  for path in found:
    path.unlink()  # of a writer that was killed
  there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  free = shutil.disk_usage(there).free
  if need > free:
    raise UserError(
      f'{folder} needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; free space or name '
      'a folder on another disk'
    )
  folder.mkdir(parents=True, exist_ok=True)


def _write_all(file: io.FileIO, data: np.ndarray) -> None:
  left = memoryview(data)
  while left:  # one call writes 2 GiB at most
    left = left[file.write(left) :]


def _tile(spans: list[tuple[int, int]], rows: int) -> bool:
  """Whether the spans cover all rows, each once."""
  spans = sorted(spans)
  return [*(start for start, _ in spans), rows] == [0, *(stop for _, stop in spans)]


def _sync(path: pathlib.Path) -> None:
  opened = os.open(path, os.O_RDONLY)
  try:
    os.fsync(opened)
  finally:
    os.close(opened)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
  """Says in one line what the system objects to."""
  try:
    yield
  except OSError as error:
    why = reason(error)
    raise UserError(
      f'{what} could not be written ({why}); {remedy(why)} and start the same command again'
    ) from error
