"""Chunks of arrays into the files that Orbax restores from, a few at a time.

    tree/ocdbt.process_0w1/    chunks that thread 1 of process 0 wrote (TensorStore: zarr in OCDBT)
    tree/manifest.ocdbt, d/    an index over all of these
    tree/_METADATA             Orbax's own: names and kinds

Orbax saves arrays that are in memory; here they never are. So TensorStore, through which Orbax
writes as well, is called for the chunks, and Orbax for everything that is its own: a handler that
has nothing left to write lets it note the arrays and merge the folders, which is how it merges
those of several processes. Only the folders' prefix and the arrays' names ('params.embedding') are
taken on trust, and a restore in the tests holds them.

A thread has a folder of its own and goes on while its last chunks, FLYING bytes at most, are on
their way to the disk: none waits for another's disk, and chunks that wait together get one file and
one commit. A commit is one rename: what a kill cuts short was never there, but for bytes of some
chunks that nothing names. What is on the disk leaves the system's cache: it would push out the
source and whatever else the machine works on. Reading goes past that cache where the file system
can (O_DIRECT): it is to meet the disk, and takes half as long.
"""

import asyncio
import collections
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from r1jax.checkpoint.public.chunks import Chunk

FLYING = 128 << 20  # bytes, a thread
CACHED = 256 << 20  # bytes, a thread, that the system may hold besides
NODES = 64 << 20  # bytes of OCDBT's own notes that are kept at hand
UNFINISHED = '.__lock'
FOLDER = 'ocdbt.process_{}w{}'
Arrays = Mapping[str, jax.ShapeDtypeStruct]


class Writer:
  """One thread's folder. who: (process, thread); durable: hears of each chunk that is on disk."""

  def __init__(
    self,
    tree: epath.Path,
    who: tuple[int, int],
    arrays: Arrays,
    grids: Mapping[str, Sequence[int]],
    durable: Callable[[Chunk, int], None],
  ):
    self._folder = tree / FOLDER.format(*who)
    self._arrays, self._grids, self._durable = arrays, grids, durable
    self._context = _context()
    self._open: dict[str, ts.TensorStore] = {}
    self._flying: collections.deque[tuple[ts.Future, Chunk, int]] = collections.deque()
    self._bytes = self._cached = 0
    self._forgotten: set[str] = set()

  def put(self, chunk: Chunk, x: np.ndarray, part: int) -> None:
    """Takes a chunk, which must not change any more, and its part of the checksum."""
    array = self._store(chunk.leaf)[chunk.index]
    written = array.write(x, can_reference_source_data_indefinitely=True).commit
    written.force()
    self._flying.append((written, chunk, part))
    self._bytes += chunk.nbytes
    while self._bytes > FLYING:
      self._land()

  def flush(self) -> None:
    """Returns when all is on the disk."""
    while self._flying:
      self._land()
    self._forget()

  def _land(self) -> None:
    written, chunk, part = self._flying.popleft()
    written.result()
    self._bytes -= chunk.nbytes
    self._durable(chunk, part)
    self._cached += chunk.nbytes
    if self._cached > CACHED:
      self._forget()

  def _forget(self) -> None:
    """Lets the system drop its copies of files that are on the disk."""
    self._cached, folder = 0, self._folder / 'd'
    if not folder.exists() or not hasattr(os, 'posix_fadvise'):
      return
    for file in os.scandir(folder):
      if file.name not in self._forgotten and not file.name.endswith(UNFINISHED):
        self._forgotten.add(file.name)
        with open(file, 'rb') as opened:
          os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

  def _store(self, leaf: str) -> ts.TensorStore:
    if leaf not in self._open:
      array = self._arrays[leaf]
      form = {'shape': array.shape, 'chunks': self._grids[leaf], 'compressor': None}
      made = {'dtype': np.dtype(array.dtype).name, 'metadata': form, 'create': True}
      self._open[leaf] = _opened(self._folder, leaf, self._context, **made)
    return self._open[leaf]


class Reader:
  """Reads slices of the arrays of a checkpoint, ours or a training run's."""

  def __init__(self, tree: epath.Path):
    self._tree, self._context = tree, _context()
    self._open: dict[str, ts.TensorStore] = {}

  def read(self, leaf: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """The slice as it is on the disk."""
    return self.start(leaf, index)()

  def start(self, leaf: str, index: tuple[slice, ...] = ()) -> Callable[[], np.ndarray]:
    """Begins to read a slice; what is returned waits for it."""
    if leaf not in self._open:
      self._open[leaf] = _opened(self._tree, leaf, self._context)
    future = self._open[leaf][index].read()
    future.force()
    return future.result


class Written(ocp.type_handlers.ArrayHandler):
  """Of arrays that are written already: Orbax takes them for saved jax.Arrays."""

  async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
    """Nothing is left to do."""
    return []


def index(tree: epath.Path, template: Any) -> None:
  """Orbax's metadata of the arrays, and the index over all folders; by one process."""
  for path in (tree / 'manifest.ocdbt', tree / 'd'):  # of a start that was killed here
    if path.exists():
      path.rmtree() if path.is_dir() else path.unlink()
  types = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, handler := Written()), (jax.ShapeDtypeStruct, handler)
  )
  orbax = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=types)

  def write() -> None:
    for commit in asyncio.run(orbax.async_save(tree, args=ocp.args.PyTreeSave(template))):
      commit.result()
    orbax.finalize(tree)

  with ThreadPoolExecutor(1) as apart:  # a notebook's own thread has an event loop already
    apart.submit(write).result()


def _context() -> ts.Context:
  nodes = {'total_bytes_limit': NODES}
  return ts.Context({'cache_pool#nodes': nodes, 'file_io_mode': {'mode': 'direct'}})


def _opened(folder: epath.Path, leaf: str, context: ts.Context, **made: Any) -> ts.TensorStore:
  path = f'{os.fspath(folder)}/'
  store = {
    'driver': 'ocdbt',
    'base': path if '://' in path else {'driver': 'file', 'path': path},
    'path': leaf.replace('/', '.') + '/',
    'cache_pool': 'cache_pool#nodes',
  }
  spec = {'driver': 'zarr', 'kvstore': store, 'open': True, 'recheck_cached_data': False, **made}
  return ts.open(spec, context=context).result()
