"""Writes rows as a TFDS dataset in ArrayRecord, without TensorFlow.

The types are inferred strictly, from all rows, before anything is written: every row has the same
fields, a field the same type: str, int (64 bits), float, bool, or a list of one of these. Floats
are kept as bytes, since tf.Example knows 32 bits only. The dataset is one file with one row a chunk
(`group_size:1`: random access reads no neighbours), in the order of the rows; it is written beside
its name and renamed when it is whole.

    folder/name/1.0.0/{dataset_info.json, features.json, name-train.array_record-00000-of-00001}
"""

import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from r1jax.core.errors import UserError
from r1jax.records import paths
from r1jax.records.record import RecordError, Records

VERSION = '1.0.0'
SCALARS = {str: 'str', int: 'int', float: 'float', bool: 'bool'}
EMPTY = 'empty list'  # becomes the list of another row
KNOWN = 'str, int, float, bool or a list of one of these'

# What shows the progress of a loop: (stage, row numbers) -> the same numbers.
Narrate = Callable[[str, range], Iterable[int]]


class Written(NamedTuple):
  """A dataset that was made; fields: name -> 'str', 'list of int', …"""

  folder: pathlib.Path
  rows: int
  size: int
  fields: dict[str, str]


def write(
  records: Records,
  name: str,
  folder: str,
  overwrite: bool = False,
  narrate: Narrate = lambda stage, rows: rows,
) -> Written:
  """Writes all rows as the split 'train' of folder/name; leaves nothing behind if that fails."""
  target = pathlib.Path(folder).expanduser() / name
  _check_target(name, target, overwrite)
  fields = infer(records, narrate)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=target.parent) as beside:
      new = pathlib.Path(beside) / 'new'
      size = _write(records, name, new / VERSION, fields, narrate)
      if target.exists():
        target.rename(new.with_name('old'))
      new.rename(target)
  except (OSError, RuntimeError) as error:  # ArrayRecord's writer knows RuntimeError only
    raise UserError(
      f'{target} cannot be written ({paths.reason(error)}); expected a folder with room'
    ) from error
  return Written(target / VERSION, len(records), size, fields)


def infer(records: Records, narrate: Narrate = lambda stage, rows: rows) -> dict[str, str]:
  """Type of every field, the same in all rows; RecordError for the first row that disagrees."""
  fields, since = {}, {}  # since: the row that told the type
  for i in narrate('check', range(len(records))):
    row = records[i]
    if i == 0:
      _check_names(row, records)
    elif row.keys() != fields.keys():
      raise RecordError(
        f'{records.where(i)}: fields {_listed(row)}; expected {_listed(fields)}, '
        f'as in {records.where(0)}'
      )
    for field, value in row.items():
      try:
        kind = _kind(value)
      except ValueError as error:
        raise RecordError(
          f"{records.where(i)}: field '{field}' {error}; expected {KNOWN}"
        ) from None
      known = fields.get(field, kind)
      joined = _join(known, kind)
      if joined is None:
        raise RecordError(
          f"{records.where(i)}: field '{field}' is of type {kind}, but {known} in "
          f'{records.where(since[field])}; write one type throughout (as float 1.0, not 1)'
        )
      if joined != fields.get(field):
        fields[field], since[field] = joined, i
  for field, kind in fields.items():
    if kind == EMPTY:
      raise UserError(
        f"{records.name}: field '{field}' is an empty list in every row, so that its type is "
        'unknown; leave the field out'
      )
  return fields


def _kind(value: Any) -> str:
  """'int', 'list of str', 'empty list', …; ValueError says what is wrong with the value."""
  if isinstance(value, list):
    kinds = sorted({_kind(v) for v in value})
    if len(kinds) > 1 or any(kind not in SCALARS.values() for kind in kinds):
      raise ValueError(f'is a list of {" and ".join(kinds)}')
    return f'list of {kinds[0]}' if kinds else EMPTY
  if type(value) not in SCALARS:
    raise ValueError('is null' if value is None else f'is of type {type(value).__name__}')
  if isinstance(value, int) and not -(2**63) <= value < 2**63:
    raise ValueError('is an int beyond 64 bits')
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeError:
      raise ValueError('is not valid Unicode (a lone surrogate)') from None
  return SCALARS[type(value)]


def _join(a: str, b: str) -> str | None:
  """The type of a field that holds values of both types; None if there is none."""
  if a == b:
    return a
  lists = [kind for kind in (a, b) if kind.startswith('list of ')]
  return lists[0] if lists and EMPTY in (a, b) else None


def _check_names(row, records):
  odd = [field for field in row if not field or '/' in field]
  if odd or not row:
    what = f"field '{odd[0]}'" if odd else 'no fields'
    raise RecordError(f'{records.where(0)}: {what}; TFDS wants fields, with names without /')


def _check_target(name: str, target: pathlib.Path, overwrite: bool) -> None:
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise UserError(f"name '{name}': expected small letters, digits and _, such as my_problems")
  if not target.exists():
    return
  if not overwrite:
    raise UserError(f'{target} exists; choose another --name, or --overwrite it')
  if [p.name for p in target.iterdir()] != [VERSION]:
    raise UserError(f'{target} holds more than a dataset made here ({VERSION}); remove it yourself')


def _write(
  records: Records, name: str, folder: pathlib.Path, fields: dict[str, str], narrate: Narrate
) -> int:
  """Writes data and descriptions into the folder; the bytes of the rows."""
  # Imported here: see tfds.py.
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict({field: _feature(kind) for field, kind in fields.items()})
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=name, split='train', filetype_suffix='array_record'
  )
  path = template.sharded_filepath(shard_index=0, num_shards=1)
  writer, size = array_record_module.ArrayRecordWriter(str(path), 'group_size:1'), 0
  for i in narrate('write', range(len(records))):
    data = features.serialize_example(records[i])
    writer.write(data)
    size += len(data)
  writer.close()
  split = tfds.core.SplitInfo(
    name='train', shard_lengths=[len(records)], num_bytes=size, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=[split],
    filename_template=template,
    description=f'{len(records)} rows of {records.name}',
    check_data=False,  # it would read with TensorFlow
  )
  return size


def _feature(kind: str) -> Any:
  from tensorflow_datasets import features

  scalar, shape = kind.removeprefix('list of '), (None,) if kind.startswith('list') else ()
  if scalar == 'str':
    return features.Sequence(features.Text()) if shape else features.Text()
  dtype = {'int': np.int64, 'float': np.float64, 'bool': np.bool_}[scalar]
  return features.Tensor(
    shape=shape, dtype=dtype, encoding='bytes' if scalar == 'float' else 'none'
  )


def _listed(names: Iterable[str]) -> str:
  return ', '.join(sorted(names)) or 'none'
