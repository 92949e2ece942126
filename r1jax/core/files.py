"""Files that are whole or absent: written beside their name, then renamed into place.

JSON is strict (NaN and infinities become null), so that every reader takes it; numbers of numpy
and jax become Python's. Paths are `epath`: a local folder or a bucket (gs://…).
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

Path = epath.PathLike


def write_text(path: Path, text: str) -> None:
  """Writes the file atomically, and to the disk; its folder is made when it is missing."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.parent / f'{path.name}.tmp'
  with beside.open('w') as file:
    file.write(text)
    file.flush()
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a bucket needs none
      os.fsync(file.fileno())
  beside.replace(path)


def write_json(path: Path, value: Any) -> None:
  """Writes `value` as indented strict JSON, atomically."""
  write_text(path, json_text(value, indent=2) + '\n')


def json_text(value: Any, indent: int | None = None) -> str:
  """Strict JSON of a tree of mappings, sequences and scalars (numpy's and jax's too)."""
  return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
  """The same tree in JSON's own types; a number that is not finite becomes None."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [plain(v) for v in value]
  if hasattr(value, 'tolist'):  # a numpy or jax array or scalar
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
