"""Text files, one record each: {'text': its bytes, 'path': its name}; read when asked for."""

import dataclasses
import pathlib
from typing import Any

from r1jax.records import paths
from r1jax.records.record import RecordError


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Path or pattern of text files in UTF-8, such as books/**/*.txt."""

  path: str


class TextFileRecords:
  """Whole files as rows; see record.Records."""

  def __init__(self, spec: TextFiles):
    self.name = spec.path
    self._files = paths.find(spec.path)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    file = self._file(i)
    try:
      data = pathlib.Path(file.path).read_bytes()
    except OSError as error:
      raise RecordError(f'{self.where(i)}: cannot be read ({error.strerror})') from error
    if not data:
      raise RecordError(f'{self.where(i)}: the file is empty, expected text; remove it')
    return {'text': data, 'path': file.name}

  def where(self, i: int) -> str:
    """'books/a.txt': a file is one row."""
    return self._file(i).path

  def fingerprint(self) -> str:
    """Names and sizes."""
    return paths.fingerprint(self._files, len(self))

  def _file(self, i):
    if not 0 <= i < len(self):
      raise IndexError(f'file {i} of {len(self)}')
    return self._files[i]
