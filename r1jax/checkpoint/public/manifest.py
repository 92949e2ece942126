"""conversion.I.json: what process I has written so far, so that the same command goes on.

    source     {'model.safetensors': [bytes, CRC-32 of the first MiB, of the last MiB]}
    arrays     {'params/embedding': 'bfloat16[129280, 7168]'}
    chunks     {'params/embedding': [4618, 7168]}
    done       {'params/embedding': {'0': 1051504401}}, chunk by number: its part of the checksum

A chunk is noted once it is on the disk; a note that a kill came before costs one chunk done twice,
with the same bytes. The parts of an array add up to its checksum (checksum.py), so what is noted
here becomes what checkpoint.json holds and `restore` compares. The number of processes may change
between a start and the next: all read the notes of all.
"""

import collections
import json
import pathlib
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from r1jax.checkpoint.errors import CheckpointError, reason
from r1jax.checkpoint.public.chunks import Chunk
from r1jax.core import files

NAME = 'conversion.{}.json'
ENDS = 1 << 20  # bytes that are looked at on either end of a source file
EVERY = 1.0  # seconds between two writes of the file
Done = dict[str, dict[int, int]]


def fingerprint(paths: Iterable[pathlib.Path]) -> dict[str, list[int]]:
  """What tells one source from another: names, sizes and ends of those of its files that exist."""
  return {path.name: _ends(path) for path in sorted(paths) if path.is_file()}


def _ends(path: pathlib.Path) -> list[int]:
  size = path.stat().st_size
  with path.open('rb') as file:
    first = zlib.crc32(file.read(ENDS))
    file.seek(max(size - ENDS, 0))
    return [size, first, zlib.crc32(file.read(ENDS))]


def found(directory: epath.Path) -> list[epath.Path]:
  """The manifests of a directory, unfinished ones too."""
  if not directory.exists():
    return []
  head, tail = NAME.split('{}')
  names = [p for p in directory.iterdir() if p.name.startswith(head) and tail in p.name]
  return sorted(names)


def read(directory: epath.Path, head: Mapping[str, Any]) -> Done:
  """What all processes have done before; raises when that was another conversion."""
  done: Done = collections.defaultdict(dict)
  for path in found(directory):
    if not path.name.endswith('.json'):
      continue
    heads, noted = _load(path, head)
    for entry, now in head.items():
      was = heads[entry]
      wrong = [name for name in {**was, **now} if was.get(name) != now.get(name)]
      if wrong:
        name = wrong[0]
        raise CheckpointError(
          f'{directory} holds an unfinished conversion of something else ({entry}: {name} was '
          f'{was.get(name, "absent")}, is {now.get(name, "absent")}); remove it or give another '
          'target'
        )
    for leaf, sums in noted.items():
      done[leaf].update(sums)
  return done


def _load(path: epath.Path, entries: Iterable[str]) -> tuple[dict[str, dict[str, Any]], Done]:
  """What a file begins with, and what it notes."""
  try:
    record = json.loads(path.read_text())
    done = {
      leaf: {int(n): int(part) for n, part in record['done'][leaf].items()}
      for leaf in record['done']
    }
    return {entry: dict(record[entry]) for entry in entries}, done
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    # Without any manifest the chunks would be files of a stranger (target.check_free).
    others = [other for other in found(path.parent) if other != path]
    mend = 'remove it: its chunks are' if others else f'remove {path.parent}: all is'
    raise CheckpointError(f'{path} is damaged ({reason(error)}); {mend} converted again') from error


class Manifest:
  """The file of one process; its threads add to it."""

  def __init__(self, directory: epath.Path, process: int, head: Mapping[str, Any]):
    self._path, self._head = directory / NAME.format(process), head
    self._done: Done = collections.defaultdict(dict)
    if self._path.exists():
      self._done.update(_load(self._path, head)[1])
    self._lock, self._written = threading.Lock(), 0.0
    self.write()

  def add(self, chunk: Chunk, part: int) -> None:
    """Notes a chunk that is on the disk; writes the file now and then."""
    with self._lock:
      self._done[chunk.leaf][chunk.number] = part
      if time.monotonic() - self._written > EVERY:
        self._write()

  def write(self) -> None:
    """Writes the file."""
    with self._lock:
      self._write()

  def _write(self) -> None:
    files.write_text(self._path, json.dumps({**self._head, 'done': self._done}))
    self._written = time.monotonic()
