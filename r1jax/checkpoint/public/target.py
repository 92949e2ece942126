"""What is checked about the place for a converted checkpoint before anything is written there."""

import contextlib
import shutil
from collections.abc import Collection, Iterator

from etils import epath

from r1jax.checkpoint.errors import CheckpointError, expected, reason, remedy
from r1jax.checkpoint.public import manifest
from r1jax.checkpoint.steps import Steps
from r1jax.checkpoint.store import FOLDER
from r1jax.core.errors import UserError

SPARE = 1 / 64  # of the bytes: room for indices, and for a batch that a kill wastes


def check_free(directory: epath.Path, beside: Collection[str] = ()) -> None:
  """Raises where the directory holds a checkpoint, or what is not ours nor named in `beside`."""
  with writing(directory):
    _check_free(directory, beside)


def _check_free(directory: epath.Path, beside: Collection[str]) -> None:
  complete = Steps(directory / FOLDER).complete()
  if complete:
    raise CheckpointError(
      f'{directory} already holds a checkpoint (step {complete[-1]}); remove it or give another '
      'target'
    )
  if not directory.exists():
    return
  begun = {path.name for path in manifest.found(directory)}
  ours = {FOLDER, *begun} if begun else begun
  strange = sorted({path.name for path in directory.iterdir()} - ours - {*beside})
  if strange:
    raise CheckpointError(
      f'{directory} is not empty (it holds {strange[0]}); empty it or give another target'
    )


def check_room(directory: epath.Path, nbytes: int) -> None:
  """Raises where so many bytes do not fit on the disk."""
  need = int(nbytes * (1 + SPARE))
  there = next(path for path in (directory, *directory.parents) if path.exists())
  free = shutil.disk_usage(there).free
  if need > free:
    raise UserError(
      f'{directory} needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; free space or '
      'give a target on another disk'
    )


@contextlib.contextmanager
def writing(directory: epath.Path) -> Iterator[None]:
  """Says in one line why the directory cannot be written."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if not expected(error):
      raise
    why = reason(error)
    raise CheckpointError(
      f'{directory} could not be written ({why}); {remedy(why)} and start the same command again: '
      'it goes on from here'
    ) from error
