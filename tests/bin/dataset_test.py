"""The command that makes datasets: what it prints, and its user's mistakes."""

import json
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from r1jax.records.make import Tfds, make

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.dataset', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_dataset_is_made_and_read_as_told(tmp_path):
  rows = [{'problem': f'{n} + 1?', 'answer': n + 1, 'marks': [0.5]} for n in range(3)]
  (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  out = call(f'--source={tmp_path}/p.jsonl', '--name=my', f'--folder={tmp_path}')
  assert out.returncode == 0, out.stderr
  spec = f"Tfds(name='my', folder='{tmp_path}', split='train')"
  assert out.stdout.splitlines() == [
    f'made {tmp_path}/my/1.0.0: 3 rows, 0.0 MB',
    'fields: answer (int), marks (list of float), problem (str)',
    f'a config reads it with: {spec}',
  ]
  assert [line.split('  ')[:3] for line in out.stderr.splitlines()] == [
    ['check', '3/3', '100%'],
    ['write', '3/3', '100%'],
  ]
  records = make(eval(spec, {'Tfds': Tfds}))
  assert [row['problem'] for row in records] == [b'0 + 1?', b'1 + 1?', b'2 + 1?']
  again = call(f'--source={tmp_path}/p.jsonl', '--name=my', f'--folder={tmp_path}')
  assert (again.returncode, again.stdout) == (2, '')
  assert again.stderr == f'error: {tmp_path}/my exists; choose another --name, or --overwrite it\n'


def test_parquet_becomes_a_dataset_too_and_replaces_one(tmp_path):
  pq.write_table(pa.Table.from_pylist([{'a': 'x'}]), tmp_path / 'd.parquet')
  flags = (f'--source={tmp_path}/*.parquet', '--name=my', f'--folder={tmp_path}', '--overwrite')
  for _ in range(2):
    assert call(*flags).returncode == 0
  assert list(make(Tfds('my', str(tmp_path)))) == [{'a': b'x'}]


def test_mistakes_are_one_line(tmp_path):
  (tmp_path / 'p.jsonl').write_text('{"a": 1}\n\n{"a": "x"}\n')
  source = f'--source={tmp_path}/p.jsonl'
  for flags, said in {
    (f'--source={tmp_path}/p.csv', '--name=my'): (
      f'--source={tmp_path}/p.csv: expected a name that ends in .jsonl or .parquet'
    ),
    (source, '--name=My'): "name 'My': expected small letters, digits and _, such as my_problems",
    (source, '--name=my', '--config.seed=1'): '--config.seed: a dataset has no config; see --help',
    (source, '--name=my'): (
      f"{tmp_path}/p.jsonl line 3: field 'a' is of type str, but int in {tmp_path}/p.jsonl line 1; "
      'write one type throughout (as float 1.0, not 1)'
    ),
  }.items():
    out = call(*flags, f'--folder={tmp_path}/made')
    assert (out.returncode, out.stdout) == (2, '')
    assert out.stderr.splitlines()[-1] == f'error: {said}'
  assert [p.name for p in tmp_path.iterdir()] == ['p.jsonl']
