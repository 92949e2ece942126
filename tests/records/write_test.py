"""Rows -> TFDS -> the same rows; rows that disagree leave nothing behind."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.records import write
from r1jax.records.jsonl import Jsonl, JsonlRecords
from r1jax.records.tfds import Tfds, TfdsRecords

ROOT = pathlib.Path(__file__).parents[2]
TEXT = st.text(st.characters(codec='utf-8'), max_size=5)
KINDS = {
  'str': TEXT,
  'int': st.integers(-(2**63), 2**63 - 1),
  'float': st.floats(),
  'bool': st.booleans(),
}
VALUES = KINDS | {f'list of {kind}': st.lists(value, max_size=3) for kind, value in KINDS.items()}


def source(folder, rows, name='d.jsonl'):
  (folder / name).write_text('\n'.join(map(json.dumps, rows)))
  return JsonlRecords(Jsonl(f'{folder}/{name}'))


def plain(value):
  """Values of a row as JSON has them."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, (list, np.ndarray)) and np.ndim(value) == 1:
    return [plain(v) for v in value]
  return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def read(folder, name='my'):
  return [{k: plain(v) for k, v in row.items()} for row in TfdsRecords(Tfds(name, str(folder)))]


def one(kind, value):
  """Whether the value shows its kind: an empty list shows none."""
  return value != [] or not kind.startswith('list')


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_dataset_holds_the_rows_it_was_made_of(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp('round')
  names = TEXT.filter(lambda name: name and '/' not in name)
  fields = data.draw(
    st.dictionaries(names, st.sampled_from(sorted(VALUES)), min_size=1, max_size=4)
  )
  row = st.fixed_dictionaries({name: VALUES[kind] for name, kind in fields.items()})
  rows = data.draw(st.lists(row, min_size=1, max_size=5))
  for name, kind in fields.items():
    if not any(one(kind, row[name]) for row in rows):
      rows[-1][name] = [data.draw(KINDS[kind.removeprefix('list of ')])]
  made = write.write(source(folder, rows), 'my', str(folder))
  assert made.fields == fields
  assert (made.folder, made.rows) == (folder / 'my' / '1.0.0', len(rows))
  # repr: nan is nan, 1.0 is no 1 and True no 1.
  assert [sorted(map(repr, row.items())) for row in read(folder)] == [
    sorted(map(repr, row.items())) for row in rows
  ]


def test_types_are_those_of_all_rows(tmp_path):
  rows = [{'a': [], 'b': 1}, {'a': ['x'], 'b': 2}, {'a': [], 'b': 3}]
  assert write.infer(source(tmp_path, rows)) == {'a': 'list of str', 'b': 'int'}


KNOWN = 'expected str, int, float, bool or a list of one of these'


@pytest.mark.parametrize(
  ('rows', 'said'),
  [
    ([{'a': 1}, {'a': 1.5}],
     "FILE line 2: field 'a' is of type float, but int in FILE line 1; "
     'write one type throughout (as float 1.0, not 1)'),
    ([{'a': []}, {'a': [True]}, {'a': []}, {'a': [1]}],
     "FILE line 4: field 'a' is of type list of int, but list of bool in FILE line 2; "
     'write one type throughout (as float 1.0, not 1)'),
    ([{'a': []}, {'a': 'x'}],
     "FILE line 2: field 'a' is of type str, but empty list in FILE line 1; "
     'write one type throughout (as float 1.0, not 1)'),
    ([{'a': 1, 'b': 2}, {'a': 1, 'c': 2}],
     'FILE line 2: fields a, c; expected a, b, as in FILE line 1'),
    ([{'a': 1}, {}], 'FILE line 2: fields none; expected a, as in FILE line 1'),
    ([{'a': 1}, {'a': None}], f"FILE line 2: field 'a' is null; {KNOWN}"),
    ([{'a': {'b': 1}}], f"FILE line 1: field 'a' is of type dict; {KNOWN}"),
    ([{'a': [1, 'x']}], f"FILE line 1: field 'a' is a list of int and str; {KNOWN}"),
    ([{'a': [[1]]}], f"FILE line 1: field 'a' is a list of list of int; {KNOWN}"),
    ([{'a': [[]]}], f"FILE line 1: field 'a' is a list of empty list; {KNOWN}"),
    ([{'a': [2**63]}], f"FILE line 1: field 'a' is an int beyond 64 bits; {KNOWN}"),
    ([{'a': 'x\ud800'}],
     f"FILE line 1: field 'a' is not valid Unicode (a lone surrogate); {KNOWN}"),
    ([{'a/b': 1}], "FILE line 1: field 'a/b'; TFDS wants fields, with names without /"),
    ([{'': 1}], "FILE line 1: field ''; TFDS wants fields, with names without /"),
    ([{}], 'FILE line 1: no fields; TFDS wants fields, with names without /'),
    ([{'a': []}, {'a': []}],
     "FILE: field 'a' is an empty list in every row, so that its type is unknown; "
     'leave the field out'),
  ],
)  # fmt: skip
def test_rows_that_disagree_leave_nothing_behind(tmp_path, rows, said):
  records = source(tmp_path, rows)
  with pytest.raises(UserError) as error:
    write.write(records, 'my', str(tmp_path / 'made'))
  assert str(error.value) == said.replace('FILE', records.name)
  assert os.listdir(tmp_path) == ['d.jsonl']


def test_a_row_that_is_damaged_leaves_nothing_behind(tmp_path):
  records = source(tmp_path, [{'a': 1}] * 3)
  (tmp_path / 'd.jsonl').write_text('{"a": 1}\n{"a": x}\n{"a": 1}')  # after the file was opened

  with pytest.raises(UserError) as error:
    write.write(records, 'my', str(tmp_path))
  assert str(error.value) == (
    f'{tmp_path}/d.jsonl line 2: not JSON (Expecting value, column 7); '
    'expected one JSON object a line, in UTF-8'
  )
  assert os.listdir(tmp_path) == ['d.jsonl']


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path):
  def narrate(stage, rows):
    for i in rows:
      yield i
      if stage == 'write':
        raise KeyboardInterrupt

  records = source(tmp_path, [{'a': 1}] * 3)
  with pytest.raises(KeyboardInterrupt):
    write.write(records, 'my', str(tmp_path), narrate=narrate)
  assert os.listdir(tmp_path) == ['d.jsonl']


def test_a_dataset_is_replaced_only_when_asked(tmp_path):
  write.write(source(tmp_path, [{'a': 1}]), 'my', str(tmp_path))
  other = source(tmp_path, [{'a': 'x'}, {'a': 'y'}], 'other.jsonl')
  with pytest.raises(UserError) as error:
    write.write(other, 'my', str(tmp_path))
  assert str(error.value) == f'{tmp_path}/my exists; choose another --name, or --overwrite it'
  assert read(tmp_path) == [{'a': 1}]
  write.write(other, 'my', str(tmp_path), overwrite=True)
  assert read(tmp_path) == [{'a': 'x'}, {'a': 'y'}]
  assert sorted(os.listdir(tmp_path)) == ['d.jsonl', 'my', 'other.jsonl']


def test_what_is_no_dataset_is_never_overwritten(tmp_path):
  records = source(tmp_path, [{'a': 1}])
  files.write_text(tmp_path / 'my' / 'thesis', 'x')
  with pytest.raises(UserError) as error:
    write.write(records, 'my', str(tmp_path), overwrite=True)
  assert str(error.value) == (
    f'{tmp_path}/my holds more than a dataset made here (1.0.0); remove it yourself'
  )
  assert (tmp_path / 'my' / 'thesis').read_text() == 'x'


def test_names_and_folders_that_cannot_be(tmp_path):
  records = source(tmp_path, [{'a': 1}])
  for name in ('My', '../my', 'a-b', '', '1a'):
    with pytest.raises(UserError, match='expected small letters, digits and _'):
      write.write(records, name, str(tmp_path))
  with pytest.raises(UserError) as error:
    write.write(records, 'my', f'{tmp_path}/d.jsonl')
  assert str(error.value) == (
    f"{tmp_path}/d.jsonl/my cannot be written ([Errno 17] File exists: '{tmp_path}/d.jsonl'); "
    'expected a folder with room'
  )


def test_a_full_disk_leaves_nothing_behind(tmp_path):
  rng = np.random.default_rng(0)
  source(tmp_path, [{'a': rng.bytes(500).hex()} for _ in range(2000)])
  code = f"""
import resource
from r1jax.records import write
from r1jax.records.jsonl import Jsonl, JsonlRecords
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
write.write(JsonlRecords(Jsonl('{tmp_path}/d.jsonl')), 'my', '{tmp_path}')
"""
  command = [sys.executable, '-c', code]
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  last = out.stderr.splitlines()[-1]
  assert last.startswith(f'r1jax.core.errors.UserError: {tmp_path}/my cannot be written (')
  assert 'File too large' in last and last.endswith('); expected a folder with room')
  assert os.listdir(tmp_path) == ['d.jsonl']
