"""Files and folders that appear whole or not at all.

Written beside their name and renamed at the end; an exception, Ctrl-C among them, removes what was
written so far. A process that is killed leaves `.NAME.tmp`, which the next one replaces; killed
between a folder's two renames, it leaves the one that was there before as `.NAME.tmp.old`.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import TextIO

from r1jax.core.errors import UserError

ABOUT = 'about.json'  # what a folder that was made here has, and another hardly


def check(path: pathlib.Path, overwrite: bool, folder: bool) -> None:
  """UserError where the name is taken by what may not be replaced; said before any long work."""
  if not path.exists():
    return
  if not overwrite:
    raise UserError(f'{path} exists; choose another --out, or --overwrite it')
  if path.is_dir() != folder:
    there, made = ('file', 'folder') if folder else ('folder', 'file')
    raise UserError(f'{path} is a {there}, what is made is a {made}; choose another --out')
  if folder and not (path / ABOUT).is_file() and any(path.iterdir()):
    raise UserError(
      f'{path} holds no {ABOUT}, so it is no folder of logits to overwrite; choose another --out'
    )


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
  path = path.resolve()  # behind a link, what it points to
  beside = path.with_name(f'.{path.name}.tmp')
  old = path.with_name(f'{beside.name}.old')
  shutil.rmtree(beside, ignore_errors=True)
  beside.mkdir(parents=True)
  try:
    yield beside
    if path.exists():
      check(path, overwrite=True, folder=True)
      shutil.rmtree(old, ignore_errors=True)
      path.rename(old)
    beside.rename(path)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    if old.exists() and not path.exists():
      old.rename(path)
    shutil.rmtree(beside, ignore_errors=True)
