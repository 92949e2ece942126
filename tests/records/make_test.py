"""Specs open the records that they name, in configs too."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.records import record, write
from r1jax.records.make import Jsonl, Parquet, RecordSpec, TextFiles, Tfds, make


@dataclasses.dataclass(frozen=True)
class Holder:
  records: RecordSpec


@pytest.fixture
def specs(tmp_path):
  rows = [{'text': 'é'}, {'text': 'b'}]
  (tmp_path / 'd.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'd.parquet')
  for name, row in zip('ab', rows):
    (tmp_path / f'{name}.txt').write_text(row['text'])
  jsonl = Jsonl(f'{tmp_path}/*.jsonl')
  write.write(make(jsonl), 'my', str(tmp_path))
  return (
    jsonl,
    Parquet(f'{tmp_path}/*.parquet'),
    Tfds('my', str(tmp_path)),
    TextFiles(f'{tmp_path}/*.txt'),
  )


def test_all_readers_give_the_same_texts(specs):
  for spec in specs:
    records = make(spec)
    assert [record.text(records, i, 'text') for i in range(len(records))] == ['é', 'b']
    assert records.fingerprint() == make(spec).fingerprint()
  assert len({make(spec).fingerprint() for spec in specs}) == 4


def test_specs_survive_the_way_through_a_config(specs):
  for spec in specs:
    assert config.from_json(Holder, config.to_json(Holder(spec))) == Holder(spec)
  switched = config.override(Holder(Jsonl('a')), 'records.type', 'Parquet')
  assert switched == Holder(Parquet('a'))


def test_anything_else_is_refused():
  with pytest.raises(UserError) as error:
    make('a.jsonl')
  assert str(error.value) == (
    "records are 'a.jsonl'; expected Jsonl(…), Parquet(…), Tfds(…) or TextFiles(…)"
  )
