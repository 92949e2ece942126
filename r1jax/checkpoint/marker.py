"""checkpoint.json: what a checkpoint holds, and the proof that it is complete.

    step, meta             what `save` was given beside the arrays
    arrays                 {'params/run0/kernel': 'float32[8, 4]'}
    checksums              {'params/run0/kernel': 1051504401}; see checksum.py
    files                  {'tree/_METADATA': 4711}, every file's bytes
    digests                {'tree/_METADATA': 318…}, CRC-32 of the small files (Orbax's own notes)
    crc                    CRC-32 of all the above as JSON, keys sorted: 2851307223

Written last and by rename. The arrays' bytes, however many, are covered by the checksums, which are
computed from the arrays themselves; everything that only says where they are, by the digests; what
is written here, by crc. Markers from before digests, checksums or crc were kept are read as well.
"""

import json
import zlib

from etils import epath

from r1jax.core import files

MARKER = 'checkpoint.json'
SMALL = 1 << 20  # bytes
ENTRIES = ('step', 'meta', 'arrays', 'files')
BEFORE_CRC = {*ENTRIES, 'checksums', 'digests'}


def write(folder: epath.Path, record: dict) -> None:
  """Adds sizes and digests of the files below the folder to the record, and writes it."""
  found = [path for path in _files(folder) if path.name != MARKER]
  sizes = {_name(folder, path): path.stat().length for path in found}
  small = [path for path in found if sizes[_name(folder, path)] <= SMALL]
  digests = {_name(folder, path): zlib.crc32(path.read_bytes()) for path in small}
  record = files.plain(record | {'files': sizes, 'digests': digests})
  files.write_json(folder / MARKER, record | {'crc': _crc(record)})


def read(folder: epath.Path, step: int) -> dict:
  """The record of a step; ValueError when it is none or not the one that was written."""
  record = json.loads((folder / MARKER).read_text())
  if not isinstance(record, dict) or not all(key in record for key in ENTRIES):
    raise ValueError(f'{MARKER} lacks an entry')
  crc = record.pop('crc', None)
  if crc != _crc(record) and (crc is not None or record.keys() - BEFORE_CRC):
    raise ValueError('its bytes have changed')
  if record['step'] != step:
    raise ValueError(f'{MARKER} is of step {record["step"]}')
  return record


def broken_file(folder: epath.Path, record: dict) -> str | None:
  """The first file that is missing, of another size or of another digest, and which of these."""
  for name, size in record['files'].items():
    if not (folder / name).exists():
      return f'{name} is missing'
    if (length := (folder / name).stat().length) != size:
      return f'{name} has {length} bytes of {size}'
  for name, digest in record.get('digests', {}).items():  # none before digests were kept
    if zlib.crc32((folder / name).read_bytes()) != digest:
      return f'the bytes of {name} have changed'
  return None


def _crc(record: dict) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _files(folder: epath.Path) -> list[epath.Path]:
  """Every file below a folder, sorted."""
  entries = sorted(folder.iterdir())
  return [file for e in entries for file in (_files(e) if e.is_dir() else [e])]


def _name(folder: epath.Path, path: epath.Path) -> str:
  return str(path.relative_to(folder))
