"""TFDS datasets in ArrayRecord, by row, without TensorFlow.

`tensorflow_datasets` reads what lies on the disk (features.json says how rows are coded); the code
that once built the dataset is not loaded, since it may import TensorFlow. Texts come as bytes,
which record.text() decodes, numbers as Python's or numpy's. A dataset is made from JSON Lines by
`python -m r1jax.bin.dataset`.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
from etils import epath

from r1jax.core.errors import UserError, no_such
from r1jax.records import paths
from r1jax.records.record import RecordError

OPEN_FILES = 64
READ_BYTES = 1 << 15  # at once; a row of a few KB is one read


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A prepared dataset: 'name', 'name/config' or 'name:1.0.0', and a split such as 'train[:90%]'.

  folder: where datasets lie; None is TFDS's own choice ($TFDS_DATA_DIR, ~/tensorflow_datasets).
  """

  name: str
  folder: str | None = None
  split: str = 'train'


class TfdsRecords:
  """Rows of a TFDS dataset; see record.Records."""

  def __init__(self, spec: Tfds):
    info = _info(spec)
    self.name = info.full_name
    try:
      shards = info.splits[spec.split].file_instructions
    except (KeyError, ValueError) as error:
      message = no_such('split', spec.split, info.splits)
      raise UserError(f'{self.name} in {info.data_dir}: {message}') from error
    self._decode = info.features.deserialize_example_np
    self._shards = [(shard.filename, shard.skip) for shard in shards]
    self._starts = np.cumsum([0, *(shard.take for shard in shards)])
    self._files = [_file(shard.filename, shard.skip, shard.take) for shard in shards]
    # A file that is dropped from this cache is closed when the last thread is done with it.
    self._open = functools.lru_cache(OPEN_FILES)(_reader)
    for shard in shards:
      rows, expected = self._open(shard.filename).num_records(), shard.examples_in_shard
      if rows != expected:  # 0 when it cannot be read at all
        raise UserError(
          f'{shard.filename} holds {rows} rows, expected {expected}; copy or make it again'
        )

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    k, row = paths.locate(self._starts, i)
    path, at = self._shards[k][0], self._shards[k][1] + row
    try:
      # read([at]), which TFDS's own source calls, takes time proportional to the rows of the file.
      return self._decode(self._open(path).read(at, at + 1)[0])
    except Exception as error:  # whatever a damaged file brings up in readers and decoders
      why = paths.reason(error)
      raise RecordError(f'{self.where(i)} is damaged ({why}); make the dataset again') from error

  def where(self, i: int) -> str:
    """'/data/my/1.0.0/my-train.array_record-00000-of-00001 row 17'."""
    k, row = paths.locate(self._starts, i)
    path, skip = self._shards[k]
    return f'{path} row {skip + row + 1}'

  def fingerprint(self) -> str:
    """Names and sizes of the split's files, the slices taken of them, and number of rows."""
    return paths.fingerprint(self._files, len(self))


def default_folder() -> str:
  """Where TFDS keeps datasets when nobody says otherwise."""
  from tensorflow_datasets.core import constants

  return constants.DATA_DIR


def _reader(path):
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(
    path, 'readahead_buffer_size:0', file_reader_buffer_size=READ_BYTES
  )


def _info(spec):
  """What TFDS knows of the dataset, set to read its ArrayRecord files."""
  # Imported here: it takes longer than the rest of the package, and few runs read TFDS.
  from tensorflow_datasets.core import file_adapters, read_only_builder, registered

  folder = os.path.expanduser(spec.folder or default_folder())
  wanted = file_adapters.FileFormat.ARRAY_RECORD
  try:
    info = read_only_builder.builder_from_files(spec.name, data_dir=folder).info
  except registered.DatasetNotFoundError as error:
    raise UserError(
      f"no dataset '{spec.name}' in {folder}; expected a prepared one, as this makes it: "
      f'python -m r1jax.bin.dataset --source=FILE.jsonl --name=NAME --folder={folder}'
    ) from error
  except Exception as error:  # TFDS has no type for a damaged dataset
    raise UserError(
      f"dataset '{spec.name}' in {folder} cannot be read ({paths.reason(error)}); "
      'expected one that TFDS prepared'
    ) from error
  if wanted not in info.available_file_formats():
    raise UserError(
      f'{info.data_dir} has files of format {info.file_format.value}, expected array_record; '
      f'convert them: tfds convert_format --dataset_dir={info.data_dir} '
      '--out_file_format=array_record'
    )
  info.set_file_format(wanted, override=True, override_if_initialized=True)
  return info


def _file(path, skip, take):
  with paths.reading(path):
    size = epath.Path(path).stat().length
  return paths.File(path, f'{pathlib.PurePath(path).name}[{skip}:{skip + take}]', size)
