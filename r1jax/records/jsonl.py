"""JSON Lines: one JSON object a line, UTF-8; lines of white space alone are skipped.

Opening reads the files once to note where every row begins (8 bytes of memory a row); a row is read
(one `pread`) and parsed when it is asked for, so that files may be far larger than memory.
Compressed files are refused: they have no random access.
"""

import array
import bisect
import dataclasses
import functools
import json
import os
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.records import paths
from r1jax.records.record import RecordError

COMPRESSED = ('.gz', '.bz2', '.xz', '.zst')
OPEN_FILES = 64


@dataclasses.dataclass(frozen=True)
class Jsonl:
  """Path or pattern of JSON Lines files."""

  path: str


class Index(NamedTuple):
  """begins: int64 [rows + 1], bytes where a row begins and the last one ends; a row's bytes may
  end with blank lines. blanks: for every blank line, the number of rows before it."""

  begins: np.ndarray
  blanks: array.array


class JsonlRecords:
  """Objects of JSON Lines files; see record.Records."""

  def __init__(self, spec: Jsonl):
    self.name = spec.path
    self._files = paths.find(spec.path)
    self._indices = [scan(file.path) for file in self._files]
    counts = [len(index.begins) - 1 for index in self._indices]
    self._starts = np.cumsum([0, *counts])
    # A file that is dropped from this cache is closed when the last thread is done with it.
    self._open = functools.lru_cache(OPEN_FILES)(functools.partial(open, mode='rb', buffering=0))

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    k, row = paths.locate(self._starts, i)
    path, (begin, end) = self._files[k].path, self._indices[k].begins[row : row + 2].tolist()
    with paths.reading(path):
      file = self._open(path)  # held while it is read: another thread may drop it from the cache
      data = os.pread(file.fileno(), end - begin, begin)
    try:
      value = json.loads(data.decode().rstrip())
    except json.JSONDecodeError as error:
      raise self._bad(i, f'not JSON ({error.msg}, column {error.pos + 1})') from None
    except UnicodeDecodeError as error:
      raise self._bad(i, f'not UTF-8 ({error.reason}, byte {error.start + 1})') from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 10000 brackets
      raise self._bad(i, f'not JSON that can be read ({error})') from None
    if not isinstance(value, dict):
      raise self._bad(i, f'{type(value).__name__} in place of an object')
    return value

  def where(self, i: int) -> str:
    """'data.jsonl line 17': the file's own line, blank ones counted."""
    k, row = paths.locate(self._starts, i)
    return f'{self._files[k].path} line {row + 1 + bisect.bisect(self._indices[k].blanks, row)}'

  def fingerprint(self) -> str:
    """Names, sizes and number of rows."""
    return paths.fingerprint(self._files, len(self))

  def _bad(self, i, what):
    return RecordError(f'{self.where(i)}: {what}; expected one JSON object a line, in UTF-8')


def scan(path: str) -> Index:
  """Where the rows of a file are; UserError for a compressed file or one without rows."""
  if path.endswith(COMPRESSED):
    raise UserError(f'{path} is compressed, which has no random access; expected plain JSON Lines')
  begins, blanks, at = array.array('q'), array.array('q'), 0
  with paths.reading(path), open(path, 'rb', buffering=1 << 20) as file:
    for line in file:
      if line.isspace():
        blanks.append(len(begins))
      else:
        begins.append(at)
      at += len(line)
  if not begins:
    raise UserError(f'{path} has no rows; expected one JSON object a line')
  begins.append(at)
  return Index(np.array(begins), blanks)
