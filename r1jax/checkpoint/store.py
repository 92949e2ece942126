"""A folder of checkpoints: arrays through Orbax, everything else in one JSON file.

    directory/40/tree/…            the arrays (Orbax, OCDBT), each shard written by its own process
    directory/40/checkpoint.json   step, meta, the arrays' shapes, dtypes and checksums, the files

`checkpoint.json` (marker.py) is written last and by rename: it is the commit marker. A folder
without it is an interrupted save and is never taken as latest.

Saving is asynchronous. `save` returns once the arrays' bytes are on the host (on CPU that is a
view: JAX gives a donated update other memory while a view lives, so nothing is copied and nothing
torn); a background thread writes them, every process its shards, and the first process then writes
the marker. Orbax's handler is driven directly, not through its AsyncCheckpointer: the marker makes
its rename needless, and where one process of several cannot write, all raise at once (peers.py)
instead of when a barrier times out. Nothing is compressed: floats shrink by 8 % for twice the time.
A stack of layers or experts is stored matrix by matrix: a chunk is read whole, and an export reads
one layer at a time. Chunks cost a copy, which files of 128 MiB, written side by side, make up for.

Every leaf is a `jax.Array` of at least one element, global when there are several processes (step
counters too); None and empty containers hold no leaf and come from the template. Random keys are
stored as `jax.random.key_data(key)` and made again with `jax.random.wrap_key_data`. Leaves come
back under the shardings of the template, whatever mesh they were written from.

What cannot be written, read or used raises one line, a `CheckpointError` that says what to do. It
is `Damaged` when a complete checkpoint's bytes are not those that were written (a file missing, its
size, its digest, an array's checksum): the caller may then `discard` it, which only sets it aside,
and take the one before.
"""

import asyncio
import json
import math
import threading
import zlib
from collections.abc import Callable
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from r1jax.checkpoint import checksum, leaves, marker, peers
from r1jax.checkpoint.background import Background, quiet
from r1jax.checkpoint.errors import CheckpointError, Damaged, expected, is_damage, reason, remedy
from r1jax.checkpoint.marker import MARKER
from r1jax.checkpoint.steps import Steps
from r1jax.core import files
from r1jax.sharding import processes

FOLDER = 'checkpoints'  # of a workdir
TREE = 'tree'
CHUNK, FILE = 256 << 10, 128 << 20  # bytes: the least that is cut from a stack, of a file of chunks


class Store:
  """Saves and restores the steps below one directory.

  Keeps the newest `keep` of them and, beyond, those that `keep_every` divides. `save`, `restore`
  and `discard` are called by every process, with the same arguments, from the main thread.
  """

  def __init__(self, directory: epath.PathLike, keep: int = 3, keep_every: int | None = None):
    if keep < 1:
      raise CheckpointError(f'a store keeps at least one checkpoint, keep={keep} was given')
    if keep_every is not None and keep_every < 1:
      raise CheckpointError(f'keep_every is a number of updates or None, {keep_every} was given')
    self.keep, self.keep_every = keep, keep_every
    self._steps = Steps(directory)
    self._background = Background()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type | None, *_: Any) -> None:
    self.close() if kind is None else self._background.finish()

  @property
  def directory(self) -> epath.Path:
    """Where the step folders are."""
    return self._steps.directory

  def steps(self) -> list[int]:
    """The steps with a complete checkpoint, ascending; looks for markers only."""
    return self._steps.complete()

  def latest(self) -> int | None:
    """The newest complete step, None when there is none; one in flight is not complete."""
    return max(self.steps(), default=None)

  def meta(self, step: int | None = None) -> dict:
    """What `save` was given beside the arrays; reads no array."""
    return self._steps.record(step)['meta']

  def describe(self, step: int | None = None) -> dict[str, str]:
    """{'params/run0/kernel': 'float32[8, 4]'}: the arrays of a step; reads none of them."""
    return self._steps.record(step)['arrays']

  def identity(self, step: int | None = None) -> str:
    """Eight hex digits of the arrays' checksums (their shapes, where none were kept)."""
    record = self._steps.record(step)
    held = record.get('checksums') or record['arrays']
    return f'{zlib.crc32(json.dumps(held, sort_keys=True).encode()):08x}'

  def save(self, step: int, tree: Any, meta: dict, block: bool = False) -> None:
    """Takes the tree as it is now and writes it in the background; steps must ascend.

    Waits for an earlier save first and raises what went wrong with it. The arrays may be donated as
    soon as this returns. `meta` is whatever JSON holds. block: returns when all is complete.
    """
    self.wait()
    newest = self.latest()
    if newest is not None and step <= newest:
      raise CheckpointError(
        f'step {step} cannot be saved in {self.directory}: it holds step {newest} already; '
        'resume from that, or train in another workdir'
      )
    leaves.check(tree)
    record = {'step': step, 'meta': meta, 'arrays': leaves.describe(tree)}
    record = json.loads(files.json_text(record))  # fails before anything is written
    name = peers.meeting()
    self._attempt(step, f'{name}/folder', lambda: self._make(step))
    sums = checksum.start(list(leaves.named(tree).values()))
    taken = threading.Event()

    def write() -> None:
      try:
        self._write(name, record, tree, sums, taken)
      finally:
        taken.set()  # also when it failed before

    self._background.start(write)
    taken.wait()
    if block:
      self.wait()

  def wait(self) -> None:
    """Returns when no save is in flight; raises what went wrong with it, once."""
    self._background.wait()

  def poll(self) -> None:
    """Raises what went wrong with a save that has failed, once; cheap, never waits.

    For one process only: of several, one knows sooner than another, and would raise while the
    others go on into a collective. `wait` and `save` raise on all of them at the same call.
    """
    self._background.poll()

  def close(self) -> None:
    """Waits, and lets the background thread go."""
    self._background.close()

  def restore(self, template: Any, step: int | None = None, partial: bool = False) -> Any:
    """The tree of a step (the latest by default), placed as the template says.

    template: a pytree of jax.ShapeDtypeStruct (or arrays); a leaf's sharding is where it goes,
      without one it goes to the first device.
    partial: the template may name a part of what was saved, such as {'params': …} alone.
    """
    self.wait()
    record = self._steps.record(step)
    if wrong := leaves.mismatch(record['arrays'], leaves.describe(template), partial):
      raise CheckpointError(
        f'checkpoint step {record["step"]} in {self.directory} does not fit this model: '
        f'{wrong}; use the config it was trained with (its meta holds it)'
      )
    tree = peers.together(peers.meeting(), lambda: self._read(record, template, partial))
    self._compare(record, tree)
    return tree

  def discard(self, step: int) -> None:
    """Sets a step aside as '<step>.damaged', never taken for a step; nothing is deleted.

    What looks like damage may be a disk that did not answer; to have the step back, rename it.
    Only an older folder of that name is replaced.
    """
    self.wait()
    peers.together(peers.meeting(), lambda: processes.leader() and self._steps.set_aside(step))

  def _make(self, step: int) -> None:
    if processes.leader():
      self._steps.remove(step)  # an interrupted save of the same step
      (self._steps.folder(step) / TREE).mkdir(parents=True)

  def _write(
    self, name: str, record: dict, tree: Any, sums: Callable[[], list[int]], taken: threading.Event
  ) -> None:
    """Everything after `save`'s checks; runs in the background, sets `taken` when it has `tree`."""
    step, folder = record['step'], self._steps.folder(record['step'])
    orbax = ocp.PyTreeCheckpointHandler(use_compression=False)

    def arrays() -> None:
      args = ocp.args.PyTreeSave(
        tree, save_args=jax.tree.map(cut, tree), ocdbt_target_data_file_size=FILE
      )
      commits = asyncio.run(orbax.async_save(folder / TREE, args=args))
      taken.set()
      for commit in commits:
        commit.result()

    def complete() -> None:
      if processes.leader():
        orbax.finalize(folder / TREE)
        checksums = dict(zip(record['arrays'], sums(), strict=True))
        marker.write(folder, record | {'checksums': checksums})

    with quiet():
      self._attempt(step, f'{name}/arrays', arrays)
      self._attempt(step, f'{name}/complete', complete)
    kept = self.keep, self.keep_every
    peers.together(f'{name}/old', lambda: processes.leader() and self._steps.drop_old(*kept))

  def _attempt(self, step: int, name: str, write: Callable[[], None]) -> None:
    """Writes on all processes; a failure removes the unfinished folder and says what to do."""
    try:
      peers.together(name, write)
    except Exception as error:
      if processes.leader():
        self._steps.remove_unfinished(step)
      if not expected(error):
        raise
      why = reason(error)
      raise CheckpointError(
        f'checkpoint step {step} could not be written to {self.directory} ({why}); {remedy(why)} '
        f'and start the same command again; {self._steps.newest()}'
      ) from error

  def _read(self, record: dict, template: Any, partial: bool) -> Any:
    """The arrays, if the files are as they were left."""
    step, folder = record['step'], self._steps.folder(record['step'])
    args = ocp.args.PyTreeRestore(
      template, restore_args=leaves.places(template), partial_restore=partial
    )
    try:
      if broken := marker.broken_file(folder, record):
        raise self._steps.damaged(step, broken)
      return ocp.PyTreeCheckpointHandler().restore(folder / TREE, args=args)
    except Damaged:
      raise
    except Exception as error:
      if is_damage(error):
        raise self._steps.damaged(step, reason(error)) from error
      if expected(error):
        raise self._steps.unreadable(step, error) from error
      raise

  def _compare(self, record: dict, tree: Any) -> None:
    """Raises when an array is not the one that was saved."""
    found = leaves.named(tree)
    saved = record.get('checksums', {})  # none before checksums were kept
    sums = zip(found, checksum.start(list(found.values()))(), strict=True)
    wrong = [name for name, value in sums if saved.get(name, value) != value]
    if wrong:
      more = f' and of {len(wrong) - 1} more' if len(wrong) > 1 else ''
      raise self._steps.damaged(record['step'], f'the bytes of {wrong[0]}{more} have changed')


def cut(leaf: jax.Array) -> ocp.SaveArgs:
  """The axes before the last two are stored one by one, as far as that leaves CHUNK bytes each."""
  shard = leaf.sharding.shard_shape(leaf.shape)
  one = lambda axis: math.prod(shard[axis + 1 :]) * leaf.dtype.itemsize
  return ocp.SaveArgs(shard_axes=tuple(a for a in range(leaf.ndim - 2) if one(a) >= CHUNK))


def resolve(path: epath.PathLike) -> tuple[epath.Path, int]:
  """(directory, step) of a workdir, its checkpoints folder (their latest step) or a step folder."""
  path = epath.Path(path).expanduser().resolve()
  if not path.exists():
    raise CheckpointError(f'no checkpoint at {path}: it does not exist; check the path')
  if (path / FOLDER).exists():
    path = path / FOLDER
  elif path.name.isdecimal() and ((path / MARKER).exists() or (path / TREE).exists()):
    return path.parent, Steps(path.parent).record(int(path.name))['step']
  return path, Steps(path).record(None)['step']
