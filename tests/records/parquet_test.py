"""Parquet: random access over files and row groups, a bounded cache, damage named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1jax.core.errors import UserError
from r1jax.records import record
from r1jax.records.parquet import Parquet, ParquetRecords


def rows(start, count):
  return [{'n': n, 'text': f'é{n}', 'list': [n, n]} for n in range(start, start + count)]


@pytest.fixture
def folder(tmp_path):
  pq.write_table(pa.Table.from_pylist(rows(0, 10)), tmp_path / 'a.parquet', row_group_size=3)
  pq.write_table(pa.Table.from_pylist(rows(10, 5)), tmp_path / 'b.parquet', row_group_size=2)
  return tmp_path


def test_rows_of_all_files_in_any_order(folder):
  records = ParquetRecords(Parquet(f'{folder}/*.parquet'))
  assert len(records) == 15
  assert list(records) == rows(0, 15)
  assert [records[i] for i in (14, 0, 9, 10)] == [rows(i, 1)[0] for i in (14, 0, 9, 10)]
  assert record.text(records, 12, 'text') == 'é12'
  assert records.where(9) == f'{folder}/a.parquet row 10'
  assert records.where(10) == f'{folder}/b.parquet row 1'
  with pytest.raises(IndexError):
    records[15]


def test_the_cache_is_bounded_and_keeps_what_was_used_last(folder, monkeypatch):
  reads, read = [], pq.ParquetFile.read_row_group

  def counted(self, group, **kw):
    reads.append(group)
    return read(self, group, **kw)

  path = f'{folder}/a.parquet'
  size = pq.ParquetFile(path).read_row_group(0).nbytes
  monkeypatch.setattr(pq.ParquetFile, 'read_row_group', counted)
  for cache_bytes, expected in ((0, [0, 1, 0, 2, 0]), (2 * size, [0, 1, 2]), (1 << 20, [0, 1, 2])):
    reads.clear()
    records = ParquetRecords(Parquet(path), cache_bytes)
    for i in (0, 3, 4, 1, 6, 2):  # of the groups 0 1 1 0 2 0
      assert records[i] == rows(i, 1)[0]
    assert reads == expected


def test_damaged_files_are_refused(folder):
  (folder / 'c.parquet').write_bytes(b'not this')
  with pytest.raises(UserError) as error:
    ParquetRecords(Parquet(f'{folder}/*.parquet'))
  assert str(error.value).startswith(f'{folder}/c.parquet is no Parquet file (Parquet magic bytes')
  assert str(error.value).endswith('); expected one')
  assert '\n' not in str(error.value)
  pq.write_table(pa.table({'n': pa.array([], pa.int64())}), folder / 'c.parquet')
  with pytest.raises(UserError) as error:
    ParquetRecords(Parquet(f'{folder}/c.parquet'))
  assert str(error.value) == f'{folder}/c.parquet has no rows; expected at least one'


def test_a_damaged_row_group_names_its_row(folder):
  path = folder / 'a.parquet'
  pq.write_table(
    pa.table({'n': list(range(4000))}), path, row_group_size=2000, compression='NONE',
    use_dictionary=False,
  )  # fmt: skip
  column = pq.read_metadata(path).row_group(1).column(0)
  data = bytearray(path.read_bytes())
  begin = column.data_page_offset
  data[begin : begin + 20] = b'\xff' * 20
  path.write_bytes(data)
  records = ParquetRecords(Parquet(str(path)))
  assert records[1999] == {'n': 1999}
  with pytest.raises(record.RecordError) as error:
    records[2000]
  said = str(error.value)
  assert said.startswith(f'{path} row 2001: row group 2 cannot be decoded (')
  assert said.endswith('); expected an undamaged file, in UTF-8')


def test_text_that_is_not_utf8_is_a_bad_row(folder):
  bad = pa.array([b'ok', b'\xff'], pa.binary()).view(pa.string())
  pq.write_table(pa.table({'text': bad}), folder / 'c.parquet')
  records = ParquetRecords(Parquet(f'{folder}/c.parquet'))
  assert records[0] == {'text': 'ok'}
  with pytest.raises(record.RecordError, match=r'c\.parquet row 2: row group 1 cannot be decoded'):
    records[1]
