"""Texts of rows, and what is said of those that are none."""

import pytest

from r1jax.records import record


class Rows:
  """One row of a file."""

  name = 'd.jsonl'

  def __init__(self, row):
    self.row, self.reads = row, 0

  def __len__(self):
    return 1

  def __getitem__(self, i):
    self.reads += 1
    return self.row

  def where(self, i):
    return f'd.jsonl line {i + 17}'

  def fingerprint(self):
    return ''


def test_texts_come_from_str_and_bytes_and_the_row_is_read_once():
  rows = Rows({'a': 'é', 'b': 'é'.encode(), 'n': 1})
  assert record.texts(rows, 0, ('b', 'a')) == ['é', 'é']
  assert rows.reads == 1
  assert record.text(rows, 0, 'b') == 'é'


@pytest.mark.parametrize(
  ('field', 'said'),
  [
    ('texts', "no field 'texts'; did you mean 'text'? known: text, n, half, bad"),
    ('n', "field 'n' is of type int, expected a text; fields: text, n, half, bad"),
    ('half', "field 'half' is not valid UTF-8 (surrogates not allowed at 1)"),
    ('bad', "field 'bad' is not valid UTF-8 (invalid start byte at 2)"),
  ],
)
def test_a_field_without_text_is_named(field, said):
  rows = Rows({'text': 'x', 'n': 1, 'half': 'a\ud800', 'bad': b'ab\xff'})
  with pytest.raises(record.RecordError) as error:
    record.text(rows, 0, field)
  assert str(error.value) == f'd.jsonl line 17: {said}'
