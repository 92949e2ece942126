"""Files and folders that appear whole or not at all.

Written beside their name and renamed at the end; an exception, Ctrl-C among them, removes what was
written so far. A process that is killed leaves `.NAME.tmp`, which the next one replaces.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import TextIO

from r1jax.core.errors import UserError


def check(path: pathlib.Path, overwrite: bool) -> None:
  """UserError where the name is taken; said before any long work."""
  if path.exists() and not overwrite:
    raise UserError(f'{path} exists; choose another --out, or --overwrite it')


@contextlib.contextmanager
def file(path: pathlib.Path) -> Iterator[TextIO]:
  """A text file to write, which takes its name, or another's place, at the end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f'.{path.name}.tmp')
  try:
    with beside.open('w', encoding='utf-8') as out:
      yield out
    beside.replace(path)
  finally:
    beside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty folder to fill, which takes its name, or another's place, at the end."""
  beside = path.with_name(f'.{path.name}.tmp')
  shutil.rmtree(beside, ignore_errors=True)
  beside.mkdir(parents=True)
  try:
    yield beside
    if path.exists():
      shutil.rmtree(path)
    beside.rename(path)
  finally:
    shutil.rmtree(beside, ignore_errors=True)
