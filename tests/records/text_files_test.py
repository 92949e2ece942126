"""Text files as rows."""

import pytest

from r1jax.records import record
from r1jax.records.text_files import TextFileRecords, TextFiles


def test_every_file_is_a_row(tmp_path):
  (tmp_path / 'x').mkdir()
  (tmp_path / 'b.txt').write_text('bé\n')
  (tmp_path / 'x' / 'a.txt').write_bytes(b'a\r\n\xff')
  (tmp_path / 'c.md').write_text('no')
  (tmp_path / 'empty.txt').touch()
  records = TextFileRecords(TextFiles(f'{tmp_path}/**/*.txt'))
  assert len(records) == 3
  assert records[0] == {'text': 'bé\n'.encode(), 'path': 'b.txt'}
  assert record.texts(records, 0, ('text', 'path')) == ['bé\n', 'b.txt']
  for i, said in {
    1: 'empty.txt: the file is empty, expected text; remove it',
    2: "x/a.txt: field 'text' is not valid UTF-8 (invalid start byte at 3)",
  }.items():
    with pytest.raises(record.RecordError) as error:
      record.text(records, i, 'text')
    assert str(error.value) == f'{tmp_path}/{said}'
  (tmp_path / 'b.txt').unlink()
  with pytest.raises(record.RecordError) as error:
    records[0]
  assert str(error.value) == f'{tmp_path}/b.txt: cannot be read (No such file or directory)'
  with pytest.raises(IndexError):
    records[3]
