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
from collections.abc import Mapping
from typing import Any

from etils import epath

from r1jax.checkpoint.errors import CheckpointError
from r1jax.checkpoint.public.chunks import Chunk
from r1jax.core import files

NAME = 'conversion.{}.json'
ENDS = 1 << 20  # bytes that are looked at on either end of a source file
EVERY = 1.0  # seconds between two writes of the file
Done = dict[str, dict[int, int]]


def fingerprint(source: pathlib.Path) -> dict[str, list[int]]:
  """What tells this source (a folder or one file) from another: names, sizes and ends of files."""
  found = sorted(source.iterdir()) if source.is_dir() else [source]
  named = [path for path in found if path.is_file() and not path.name.startswith('.')]
  return {path.name: _ends(path) for path in named}


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
    record = json.loads(path.read_text())
    for entry, now in head.items():
      was = record[entry]
      wrong = [name for name in {**was, **now} if was.get(name) != now.get(name)]
      if wrong:
        name = wrong[0]
        raise CheckpointError(
          f'{directory} holds an unfinished conversion of something else ({entry}: {name} was '
          f'{was.get(name, "absent")}, is {now.get(name, "absent")}); remove it or give another '
          'target'
        )
    for leaf, sums in record['done'].items():
      done[leaf].update({int(number): part for number, part in sums.items()})
  return done


class Manifest:
  """The file of one process; its threads add to it."""

  def __init__(self, directory: epath.Path, process: int, head: Mapping[str, Any]):
    self._path, self._head = directory / NAME.format(process), head
    self._done: Done = collections.defaultdict(dict)
    if self._path.exists():
      for leaf, sums in json.loads(self._path.read_text())['done'].items():
        self._done[leaf] = {int(number): part for number, part in sums.items()}
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
