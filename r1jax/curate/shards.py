"""A teacher's likeliest tokens beside packed token lines, in a folder: what `Stored` reads.

    about.json      tokenizer's fingerprint, K, temperature, inputs a line, lines of each shard
    00000.npy …     one record a line: tokens, segments, targets, weights [L]; ids, logp [L, K]

Position i of a line holds what the teacher says of its target i: ids of the K likeliest tokens, the
likeliest first, and their log-probabilities at the temperature. Records lie on the disk as in
memory, so that any line is one read of L·(16 + 8·K) bytes and no shard is ever loaded whole. A
folder may have more shards than a process may open files: few are open at a time.
"""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.curate import output
from r1jax.curate.output import ABOUT
from r1jax.data import order
from r1jax.data.batch import Batch, Row, batch
from r1jax.data.pack import best_fit

OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class About:
  """What the folder holds."""

  teacher: str
  tokenizer: str
  k: int
  temperature: float
  length: int
  shards: tuple[int, ...] = ()


class Taught(NamedTuple):
  """Lines as a batch, and beside each target what the teacher says of it."""

  batch: Batch
  ids_BLK: np.ndarray
  logp_BLK: np.ndarray


Teach = Callable[[Batch], tuple[np.ndarray, np.ndarray]]  # -> ids_BLK, logp_BLK


def record(length: int, k: int) -> np.dtype:
  """The form of a line on the disk."""
  flat = [('tokens', '<i4'), ('segments', '<i4'), ('targets', '<i4'), ('weights', '<f4')]
  return np.dtype(
    [(name, kind, (length,)) for name, kind in flat]
    + [(name, kind, (length, k)) for name, kind in (('ids', '<i4'), ('logp', '<f4'))]
  )


def taught(rows: Sequence[Row], about: About, lines: int, teach: Teach) -> Iterator[np.ndarray]:
  """Packs rows and asks the teacher about `lines` lines at a time; gives their records."""
  packed = best_fit([len(row.tokens) - 1 for row in rows], about.length)
  for at in range(0, len(packed), lines):
    part = [[rows[i] for i in line] for line in packed[at : at + lines]]
    filled = part + [[]] * (lines - len(part))  # one shape for all
    made = batch(filled, about.length, 0)
    ids_BLK, logp_BLK = teach(made)
    records_B = np.zeros(lines, record(about.length, about.k))
    records_B['tokens'], records_B['segments'] = made.inputs.tokens_BL, made.inputs.segments_BL
    records_B['targets'], records_B['weights'] = made.targets_BL, made.weights_BL
    records_B['ids'], records_B['logp'] = ids_BLK, logp_BLK
    yield records_B[: len(part)]


def write(path: pathlib.Path, about: About, shards: Iterable[np.ndarray]) -> About:
  """Writes the folder, whole or not at all; gives its description with the shards' sizes."""
  sizes = []
  with output.folder(path) as beside:
    for i, records_B in enumerate(shards):
      np.save(beside / f'{i:05}.npy', records_B)
      sizes.append(len(records_B))
    about = dataclasses.replace(about, shards=tuple(sizes))
    files.write_json(beside / ABOUT, dataclasses.asdict(about))
  return about


def about(path: str) -> About:
  """The description of a folder; UserError where it is none."""
  file = pathlib.Path(path).expanduser() / ABOUT
  try:
    said = json.loads(file.read_text('utf-8'))
    found = About(**said | {'shards': tuple(said['shards'])})
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{file}: no description of stored logits ({type(error).__name__}: {error}); make the folder '
      'by bin/curate --kind=logits'
    ) from None
  if min(found.shards, default=0) < 1:
    raise UserError(f'{file}: no lines; curate more prompts')
  return found


def fingerprint(path: str) -> str:
  """Eight hex digits of the description, every shard's first line and some 256 others."""
  lines = Lines(path)
  crc = zlib.crc32(repr(lines.about).encode())
  some = range(0, len(lines), max(1, len(lines) // 256))
  for i in sorted({*some, *lines.firsts}):
    crc = zlib.crc32(lines.line(i).tobytes(), crc)
  return f'{crc:08x}'


class Lines:
  """The lines of a folder by number, in an order of each epoch's own."""

  def __init__(self, path: str):
    self.about, folder = about(path), pathlib.Path(path).expanduser()
    self._starts = np.cumsum([0, *self.about.shards])
    self._shard = functools.lru_cache(OPEN_FILES)(functools.partial(_shard, folder, self.about))
    for i in range(len(self.about.shards)):
      self._shard(i)  # what cannot be read is said now, not at a step that wants it

  @property
  def firsts(self) -> list[int]:
    """Number of every shard's first line."""
    return self._starts[:-1].tolist()

  def __len__(self) -> int:
    return int(self._starts[-1])

  def take(self, first: int, count: int, seed: int, depths: int) -> Taught:
    """Lines first … first + count − 1 of the endless sequence that the seed names."""
    places = (divmod(n, len(self)) for n in range(first, first + count))
    found = [self.line(order.index(i, len(self), 'lines', seed, epoch)) for epoch, i in places]
    made = batch([_rows(r) for r in found], self.about.length, depths)
    return Taught(made, *(np.stack([r[name] for r in found]) for name in ('ids', 'logp')))

  def line(self, i: int) -> np.void:
    """The record of line i."""
    shard = int(np.searchsorted(self._starts, i, 'right')) - 1
    return self._shard(shard)[i - self._starts[shard]]


def _shard(folder: pathlib.Path, about: About, i: int) -> np.ndarray:
  """Shard i, mapped and not read; UserError where it cannot be, or is another's."""
  file = folder / f'{i:05}.npy'
  try:
    found = np.load(file, mmap_mode='r')
  except (OSError, ValueError, EOFError) as error:
    raise UserError(
      f'{file} cannot be read ({type(error).__name__}: {error}); make the folder again'
    ) from None
  if found.dtype != record(about.length, about.k) or found.shape != (about.shards[i],):
    raise UserError(f'{file} is not what {ABOUT} says; make the folder again')
  return found


def _rows(line: np.void) -> list[Row]:
  """A line as the rows it was packed of; what a row's first token weighs does not matter."""
  rows = []
  for s in range(1, int(line['segments'].max()) + 1):
    here = line['segments'] == s
    tokens = np.append(line['tokens'][here], line['targets'][here][-1])
    rows.append(Row(tokens, np.append(np.float32(0), line['weights'][here])))
  return rows
