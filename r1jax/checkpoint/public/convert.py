"""Streams public weights into a checkpoint of ours: step 0 of DIRECTORY/checkpoints.

    read, dequantize, transpose -> checksum -> write     chunk by chunk, in a few threads
    index, read all back, compare checksums              what is on the disk is what was written
    checkpoint.json                                      last, by rename, as the store does

Beside the unfinished output a manifest notes every chunk that is on the disk (manifest.py); the
same command goes on from there. Several processes convert a part each, into one shared folder, and
read of the source only that.

Memory: a thread's chunks on their way (writer.py) and the one in the making, whatever the model's
size. Cost, of one core and a GB of bfloat16: 0.6 s to read, transpose and widen fp8, 0.3 for the
checksum, twice, 1 in the system to write and 0.5 to read back; then what the disk takes.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from r1jax.checkpoint import checksum, leaves, marker, peers
from r1jax.checkpoint.errors import CheckpointError, expected, reason
from r1jax.checkpoint.public import chunks, manifest, target, writer
from r1jax.checkpoint.public.chunks import Chunk
from r1jax.checkpoint.public.manifest import Done, Manifest
from r1jax.checkpoint.public.spread import Say, Teller, spread
from r1jax.checkpoint.public.weights import tree
from r1jax.checkpoint.store import FOLDER, TREE
from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.sharding import processes

STEP = 0


class Weights(Protocol):
  """Leaves by path, read by slice, from any thread."""

  leaves: Mapping[str, jax.ShapeDtypeStruct]

  def read(self, path: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A slice of a leaf."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What goes where. arrays: by name in the checkpoint; head: what a manifest begins with."""

  directory: epath.Path
  arrays: dict[str, jax.ShapeDtypeStruct]
  head: dict[str, dict[str, Any]]

  @property
  def folder(self) -> epath.Path:
    """Of the checkpoint."""
    return self.directory / FOLDER / str(STEP)

  def chunks(self) -> list[Chunk]:
    """All chunks, leaf by leaf."""
    grids = self.head['chunks']
    return [c for name, array in self.arrays.items() for c in chunks.cut(name, array, grids[name])]


def convert(
  weights: Weights,
  directory: epath.PathLike,
  meta: dict,
  *,
  source: Mapping[str, Any],
  beside: Collection[str] = (),
  bring: Callable[[], None] = lambda: None,
  workers: int = 2,
  verify: bool = True,
  say: Say | None = None,
) -> None:
  """Writes the weights as 'params/…' of step 0; by every process, from the main thread.

  source: what tells it from another (`manifest.fingerprint`); a conversion that was interrupted
    goes on only from the same one.
  beside: names of files that the caller puts into the directory; anything else is refused.
  bring: puts them there; the first process calls it, once all that can be refused has been.
  workers: threads, each with about 0.5 GiB. verify: whether all is read back and compared.
  say: hears of progress, from any thread, one call at a time.
  """
  plan = make_plan(weights, directory, source)
  record = json.loads(files.json_text({'meta': meta}))  # fails before anything is written
  processes.agree({'source': f'{zlib.crc32(files.json_text(plan.head).encode()):08x}'})
  _leading(lambda: target.check_free(plan.directory, beside))
  done = _together(lambda: manifest.read(plan.directory, plan.head))
  every, rank, count = plan.chunks(), processes.index(), processes.count()
  left = [chunk for chunk in every if chunk.number not in done[chunk.leaf]]
  _leading(lambda: _prepare(plan, left, bring))
  mine = chunks.share(left, rank, count)
  before = (_bytes(every) - _bytes(left)) // count
  teller = Teller(say, 'written', before, mine)
  _together(lambda: _write(plan, weights, mine, workers, teller))
  done = _together(lambda: _all_done(plan, every))
  _leading(lambda: _index(plan))
  if verify:
    mine = chunks.share(every, rank, count)
    teller = Teller(say, 'verified', 0, mine)
    _together(lambda: _verify(plan, mine, done, workers, teller))
  _leading(lambda: _finish(plan, record['meta'], done))


def make_plan(weights: Weights, directory: epath.PathLike, source: Mapping[str, Any]) -> Plan:
  """Names and chunks; raises on what a checkpoint cannot hold."""
  arrays = {f'params/{name}': leaf for name, leaf in weights.leaves.items()}
  for name, array in arrays.items():
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
      raise UserError(f'{name} is {array.dtype}, which jax does not hold; convert from 32 bits')
  grids = {name: chunks.grid(a.shape, a.dtype.itemsize) for name, a in arrays.items()}
  head = {'source': source, 'arrays': leaves.describe(tree(arrays, arrays.get)), 'chunks': grids}
  return Plan(epath.Path(directory).expanduser().resolve(), arrays, files.plain(head))


def _prepare(plan: Plan, left: Sequence[Chunk], bring: Callable[[], None]) -> None:
  """Room on the disk, then the folders; the manifest is first, as a sign that they are ours."""
  padding = chunks.stored(plan.arrays) - _bytes(plan.chunks())
  target.check_room(plan.directory, _bytes(left) + padding)
  with target.writing(plan.directory):
    Manifest(plan.directory, processes.index(), plan.head)
    bring()
    (plan.folder / TREE).mkdir(parents=True, exist_ok=True)


def _write(
  plan: Plan, weights: Weights, mine: Sequence[Chunk], workers: int, teller: Teller
) -> None:
  """Converts this process's chunks."""
  with target.writing(plan.directory):
    notes = Manifest(plan.directory, processes.index(), plan.head)

  def work(thread: int, feed: Iterator[Chunk]) -> None:
    tree, grids = plan.folder / TREE, plan.head['chunks']
    out = writer.Writer(tree, (processes.index(), thread), plan.arrays, grids, notes.add)
    for chunk in feed:
      x = _in_order(_read(weights, chunk))
      if x.shape != chunk.shape or x.dtype != plan.arrays[chunk.leaf].dtype:
        raise ValueError(f'{chunk} was read as {x.dtype}{[*x.shape]}')
      part = checksum.part(x, chunk.first)
      with target.writing(plan.directory):
        out.put(chunk, x, part)
      teller.add(chunk)
    with target.writing(plan.directory):
      out.flush()

  spread(mine, workers, work)
  with target.writing(plan.directory):
    notes.write()


def _read(weights: Weights, chunk: Chunk) -> np.ndarray:
  try:
    return weights.read(chunk.leaf.removeprefix('params/'), chunk.index)
  except OSError as error:
    raise UserError(
      f'{chunk.leaf} could not be read from the source ({reason(error)}); mend that and start the '
      'same command again: it goes on from here'
    ) from error


def _in_order(x: np.ndarray) -> np.ndarray:
  """The same values in memory order; XLA's transpose is five times as fast as NumPy's."""
  if x.flags.c_contiguous:
    return x
  return np.asarray(jax.device_put(x, jax.local_devices(backend='cpu')[0]))


def _all_done(plan: Plan, every: Sequence[Chunk]) -> Done:
  """What all processes have noted; it must be everything."""
  done = manifest.read(plan.directory, plan.head)
  missing = [chunk.leaf for chunk in every if chunk.number not in done[chunk.leaf]]
  if missing:
    raise CheckpointError(
      f'{plan.directory} lacks {missing[0]}, which another process has written; all processes must '
      'see the same folder'
    )
  return done


def _index(plan: Plan) -> None:
  with target.writing(plan.directory):
    writer.index(plan.folder / TREE, tree(plan.arrays, plan.arrays.get))


def _verify(plan: Plan, mine: Sequence[Chunk], done: Done, workers: int, teller: Teller) -> None:
  """Reads chunks back; raises when one is not what was written."""

  def work(_: int, feed: Iterator[Chunk]) -> None:
    reader = writer.Reader(plan.folder / TREE)

    def start() -> tuple[Chunk, Callable[[], np.ndarray]] | None:
      for chunk in feed:
        with _reading(plan, chunk):
          return chunk, reader.start(chunk.leaf, chunk.index)
      return None

    ahead = start()
    while ahead is not None:
      (chunk, found), ahead = ahead, start()  # the disk reads one while another is checked
      with _reading(plan, chunk):
        x = found()
      if checksum.part(x, chunk.first) != done[chunk.leaf][chunk.number]:
        raise _damaged(plan, chunk, 'its bytes are not those that were written')
      teller.add(chunk)

  spread(mine, workers, work)


@contextlib.contextmanager
def _reading(plan: Plan, chunk: Chunk) -> Iterator[None]:
  """What the disk or its index objects to is damage."""
  try:
    yield
  except Exception as error:
    if not expected(error):
      raise
    raise _damaged(plan, chunk, reason(error)) from error


def _damaged(plan: Plan, chunk: Chunk, why: str) -> CheckpointError:
  at = ', '.join(f'{part.start}:{part.stop}' for part in chunk.index)
  return CheckpointError(
    f'{chunk.leaf}[{at}] in {plan.directory} is damaged ({why}); check the disk, remove the folder '
    'and start the same command again'
  )


def _finish(plan: Plan, meta: dict, done: Done) -> None:
  """The marker; after it the manifests, which nobody needs any more."""
  sums = {name: sum(done[name].values()) % 2**32 for name in plan.head['arrays']}
  arrays = plan.head['arrays']
  with target.writing(plan.directory):
    marker.write(plan.folder, {'step': STEP, 'meta': meta, 'arrays': arrays, 'checksums': sums})
    for path in manifest.found(plan.directory):
      path.unlink()


def _bytes(some: Sequence[Chunk]) -> int:
  return sum(chunk.nbytes for chunk in some)


def _together(what: Callable[[], Any]) -> Any:
  """On every process; raises on all when it does on one, however long the others work."""
  return peers.together(peers.meeting(), what)


def _leading(what: Callable[[], None]) -> None:
  """On the first process; all wait, and raise when it does."""
  _together(lambda: processes.leader() and what())
