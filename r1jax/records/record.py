"""What every reader of rows gives: random access, the place of a row in words, a fingerprint.

A row is a dict of Python or numpy values. Readers decode it on demand and may be used from several
threads; a row that cannot be decoded raises RecordError whenever it is asked for, so that whoever
reads may stop or skip. Lines and rows are counted from 1 in messages, from 0 in code.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from r1jax.core.errors import UserError, no_such


class RecordError(UserError):
  """One row that cannot be used; '<file> line|row N: what it is, what was expected'."""


class Records(Protocol):
  """Rows by number, always in the same order."""

  name: str

  def __len__(self) -> int:
    """Rows; at least one."""

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Row i; RecordError if it is corrupt, IndexError unless 0 <= i < len."""

  def where(self, i: int) -> str:
    """'data.jsonl line 17'."""

  def fingerprint(self) -> str:
    """Short hex of names, sizes and number of rows: the same wherever the same files lie."""


def text(records: Records, i: int, field: str) -> str:
  """The text in a field of row i; RecordError if it is missing, no text, or not Unicode."""
  return texts(records, i, (field,))[0]


def texts(records: Records, i: int, fields: Sequence[str]) -> list[str]:
  """The texts in several fields of row i, which is decoded once; RecordError as in `text`."""
  row = records[i]
  return [_text(row, field, lambda: records.where(i)) for field in fields]


def _text(row, field, where):
  if field not in row:
    raise RecordError(f'{where()}: {no_such("field", field, row)}')
  value = row[field]
  try:
    if isinstance(value, bytes):
      return value.decode()
    if isinstance(value, str):
      value.encode()  # a lone surrogate, '\ud800' in JSON, is no text that anything can hold
      return value
  except UnicodeError as error:
    raise RecordError(
      f"{where()}: field '{field}' is not valid UTF-8 ({error.reason} at {error.start})"
    ) from None
  raise RecordError(
    f"{where()}: field '{field}' is of type {type(value).__name__}, expected a text; "
    f'fields: {", ".join(row)}'
  )
