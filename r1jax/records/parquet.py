"""Parquet by row: random access through row groups, of which the last used stay in memory.

A row costs a decoded row group when its group is not at hand. Data below CACHE_BYTES (decoded) is
decoded once; far larger data that is read in random order wants ArrayRecord: see
`python -m r1jax.bin.dataset`.
"""

import collections
import dataclasses
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from r1jax.core.errors import UserError
from r1jax.records import paths
from r1jax.records.record import RecordError

CACHE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Path or pattern of Parquet files."""

  path: str


class ParquetRecords:
  """Rows of Parquet files; see record.Records."""

  def __init__(self, spec: Parquet, cache_bytes: int = CACHE_BYTES):
    self.name = spec.path
    self._files = paths.find(spec.path)
    self._groups = [_groups(file.path) for file in self._files]  # first row of every group, total
    self._starts = np.cumsum([0, *(groups[-1] for groups in self._groups)])
    self._cache, self._cache_bytes = collections.OrderedDict(), cache_bytes
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    k, row = paths.locate(self._starts, i)
    group, within = paths.locate(self._groups[k], row)
    try:
      return self._table(k, group).slice(within, 1).to_pylist()[0]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
      raise RecordError(
        f'{self.where(i)}: row group {group + 1} cannot be decoded ({paths.reason(error)}); '
        'expected an undamaged file, in UTF-8'
      ) from error

  def where(self, i: int) -> str:
    """'data.parquet row 17'."""
    k, row = paths.locate(self._starts, i)
    return f'{self._files[k].path} row {row + 1}'

  def fingerprint(self) -> str:
    """Names, sizes and number of rows."""
    return paths.fingerprint(self._files, len(self))

  def _table(self, file: int, group: int) -> pa.Table:
    with self._lock:
      if (file, group) not in self._cache:
        with pq.ParquetFile(self._files[file].path) as opened:
          self._cache[file, group] = opened.read_row_group(group, use_threads=False)
        while len(self._cache) > 1 and self._held() > self._cache_bytes:
          self._cache.popitem(last=False)  # the one used longest ago
      self._cache.move_to_end((file, group))
      return self._cache[file, group]

  def _held(self) -> int:
    return sum(table.nbytes for table in self._cache.values())


def _groups(path: str) -> np.ndarray:
  """The first row of every row group, then the number of rows."""
  with paths.reading(path):
    try:
      meta = pq.read_metadata(path)
    except pa.ArrowException as error:
      raise UserError(f'{path} is no Parquet file ({paths.reason(error)}); expected one') from error
  if not meta.num_rows:
    raise UserError(f'{path} has no rows; expected at least one')
  sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
  return np.cumsum([0, *sizes])
