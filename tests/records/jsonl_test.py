"""JSON Lines: what was written is read back, blank lines are skipped, damage is named by line."""

import concurrent.futures
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.records import jsonl
from r1jax.records.jsonl import Jsonl, JsonlRecords
from r1jax.records.record import RecordError

TEXT = st.text(st.characters(codec='utf-8'))
VALUE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
ROW = st.dictionaries(TEXT, VALUE | st.lists(VALUE), max_size=4)
BLANK = st.sampled_from(['', '', '', '\n', ' \t\r\n', '\n\n'])


def written(folder, data, name='d.jsonl'):
  path = folder / name
  path.write_bytes(data.encode() if isinstance(data, str) else data)
  return JsonlRecords(Jsonl(str(path)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('jsonl')


@given(st.lists(st.tuples(BLANK, ROW), min_size=1), BLANK, st.booleans())
def test_what_was_written_is_read_back_with_its_line(folder, parts, tail, newline):
  data, lines = '', []
  for blank, row in parts:
    data += blank
    lines.append(data.count('\n') + 1)
    data += json.dumps(row, ensure_ascii=len(lines) % 2 == 0) + '\n'
  records = written(folder, (data if newline else data[:-1] + '\n') + tail)
  assert len(records) == len(parts)
  order = list(reversed(range(len(parts))))  # access is random
  assert [records[i] for i in order] == [parts[i][1] for i in order]
  assert [records.where(i) for i in range(len(parts))] == [
    f'{records.name} line {line}' for line in lines
  ]


def test_the_last_line_needs_no_newline(tmp_path):
  assert list(written(tmp_path, '{"a": 1}\r\n{"a": 2}')) == [{'a': 1}, {'a': 2}]


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    (b'{"a": 1', "not JSON (Expecting ',' delimiter, column 8)"),
    (b'{"a": 1}{', 'not JSON (Extra data, column 9)'),
    (b'  nonsense', 'not JSON (Expecting value, column 3)'),
    (b'{"a": "\xe9"}', 'not UTF-8 (invalid continuation byte, byte 8)'),
    (b'\xef\xbb\xbf{}', 'not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig), column 1)'),
    (b'[1, 2]', 'list in place of an object'),
    (b'null', 'NoneType in place of an object'),
    (b'"a"', 'str in place of an object'),
  ],
)
def test_damage_is_named_by_line_and_leaves_other_rows_alone(tmp_path, line, said):
  records = written(tmp_path, b'{"a": 1}\n\n \n' + line + b'\n{"a": 2}\n')
  assert (records[0], records[2]) == ({'a': 1}, {'a': 2})
  with pytest.raises(RecordError) as error:
    records[1]
  assert str(error.value) == (
    f'{tmp_path}/d.jsonl line 4: {said}; expected one JSON object a line, in UTF-8'
  )


def test_json_beyond_the_limits_of_the_parser_is_a_bad_row(tmp_path):
  records = written(tmp_path, '[' * 100_000 + '\n{"a": ' + '1' * 5000 + '}')
  for i in range(2):
    with pytest.raises(RecordError, match=f'line {i + 1}: not JSON that can be read'):
      records[i]


def test_files_follow_each_other_by_name(tmp_path):
  written(tmp_path, '{"n": 2}\n', 'b.jsonl')
  written(tmp_path, '{"n": 0}\n\n{"n": 1}\n', 'a.jsonl')
  records = JsonlRecords(Jsonl(f'{tmp_path}/*.jsonl'))
  assert list(records) == [{'n': 0}, {'n': 1}, {'n': 2}]
  assert [records.where(i) for i in range(3)] == [
    f'{tmp_path}/a.jsonl line 1',
    f'{tmp_path}/a.jsonl line 3',
    f'{tmp_path}/b.jsonl line 1',
  ]
  with pytest.raises(IndexError):
    records[-1]


def test_files_that_cannot_serve_are_refused(tmp_path):
  for name in ('empty.jsonl', 'blank.jsonl', 'a.jsonl.gz'):
    (tmp_path / name).write_bytes(b'' if name == 'empty.jsonl' else b'\n \n')
  for name, said in {
    'empty.jsonl': ' has no rows; expected one JSON object a line',
    'blank.jsonl': ' has no rows; expected one JSON object a line',
    'a.jsonl.gz': ' is compressed, which has no random access; expected plain JSON Lines',
  }.items():
    with pytest.raises(UserError) as error:
      JsonlRecords(Jsonl(f'{tmp_path}/{name}'))
    assert str(error.value) == f'{tmp_path}/{name}{said}'


def test_a_file_that_vanished_is_named(tmp_path):
  records = written(tmp_path, '{}\n')
  (tmp_path / 'd.jsonl').unlink()
  with pytest.raises(UserError) as error:
    records[0]
  assert str(error.value) == (
    f'{tmp_path}/d.jsonl cannot be read: No such file or directory; expected a readable file'
  )


def test_long_files_are_indexed_by_offsets_alone(tmp_path):
  rows = 200_000
  records = written(tmp_path, ''.join(f'{{"n": {i}, "t": "{"x" * 90}"}}\n' for i in range(rows)))
  index = jsonl.scan(f'{tmp_path}/d.jsonl')
  assert (index.begins.dtype, index.begins.nbytes, len(index.blanks)) == (
    np.int64, 8 * (rows + 1), 0,
  )  # fmt: skip
  picked = np.random.default_rng(0).integers(rows, size=1000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    assert [row['n'] for row in threads.map(records.__getitem__, picked)] == picked


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
  monkeypatch.setattr(jsonl, 'OPEN_FILES', 2)
  for n in range(5):
    written(tmp_path, f'{{"n": {n}}}\n', f'{n}.jsonl')
  records = JsonlRecords(Jsonl(f'{tmp_path}/*.jsonl'))
  picked = [*range(5)] * 2000
  with concurrent.futures.ThreadPoolExecutor(8) as threads:  # none closes what another reads
    assert [row['n'] for row in threads.map(records.__getitem__, picked)] == picked
