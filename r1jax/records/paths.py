"""Files that a path or pattern names, in one order on every machine, and their fingerprint.

A pattern is glob's: `data/*.jsonl`, `data/**/*.txt` (** is any number of folders). Files are sorted
by their names relative to the folder before the first wildcard; these names, not the absolute ones,
enter the fingerprint, so that two hosts that mount the data elsewhere agree.
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from r1jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class File:
  """path: as the user wrote it; name: relative to the folder of the pattern; size in bytes."""

  path: str
  name: str
  size: int


def find(pattern: str) -> list[File]:
  """The files that `pattern` names, sorted by name; UserError if there is none."""
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    raise UserError(f'{pattern} is a folder; expected a file or a pattern such as {pattern}/*')
  if os.path.exists(pattern):  # also a name that happens to hold a wildcard
    return [_file(pattern, pathlib.PurePath(pattern).parent)]
  parts = pathlib.PurePath(pattern).parts
  first = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
  found = {p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p)}
  files = [_file(path, pathlib.PurePath(*parts[:first])) for path in found]
  if not files:
    given = pathlib.Path(pattern).absolute()
    what = 'file matches' if first < len(parts) else 'file at'
    raise UserError(f'no {what} {given}; expected the path of a file, or a pattern with * or **')
  return sorted(files, key=lambda file: file.name)


def fingerprint(files: list[File], rows: int) -> str:
  """16 hex digits of names, sizes and the number of rows; no file is read."""
  listed = '\n'.join(f'{file.name} {file.size}' for file in files)
  return hashlib.sha256(f'{listed}\n{rows}'.encode()).hexdigest()[:16]


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """Turns the operating system's refusals into a UserError that names the file."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f'{path} cannot be read: {reason}; expected a readable file') from error


def reason(error: Exception) -> str:
  """What another library's exception says, in its first line."""
  return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def locate(starts: np.ndarray, i: int) -> tuple[int, int]:
  """(file, row within it) of row i; starts: the first row of every file, then the total."""
  if not 0 <= i < starts[-1]:
    raise IndexError(f'row {i} of {starts[-1]}')
  file = int(np.searchsorted(starts, i, side='right')) - 1
  return file, int(i - starts[file])


def _file(path: str, folder: pathlib.PurePath) -> File:
  with reading(path):
    size = os.stat(path).st_size
  return File(path, pathlib.PurePath(path).relative_to(folder).as_posix(), size)
