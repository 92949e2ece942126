"""TFDS datasets by row: slices, damage, and that TensorFlow stays out."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from r1jax.core.errors import UserError
from r1jax.records import record, write
from r1jax.records.jsonl import Jsonl, JsonlRecords
from r1jax.records.tfds import Tfds, TfdsRecords

ROOT = pathlib.Path(__file__).parents[2]
FILE = 'my/1.0.0/my-train.array_record-00000-of-00001'


@pytest.fixture
def folder(tmp_path):
  rows = [{'n': n, 'text': f'é{n} ' + 'x' * 100} for n in range(10)]
  (tmp_path / 'd.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  write.write(JsonlRecords(Jsonl(f'{tmp_path}/d.jsonl')), 'my', str(tmp_path))
  return tmp_path


def refusal(*spec):
  with pytest.raises(UserError) as error:
    TfdsRecords(Tfds(*spec))
  return str(error.value)


def test_slices_know_their_rows(folder):
  records = TfdsRecords(Tfds('my', str(folder)))
  assert (records.name, len(records)) == ('my/1.0.0', 10)
  assert [records[i]['n'] for i in (9, 0, 5)] == [9, 0, 5]
  assert record.text(records, 3, 'text') == 'é3 ' + 'x' * 100
  assert records.where(3) == f'{folder}/{FILE} row 4'
  held = TfdsRecords(Tfds('my:1.0.0', str(folder), 'train[80%:]'))
  assert [row['n'] for row in held] == [8, 9]
  assert held.where(1) == f'{folder}/{FILE} row 10'
  with pytest.raises(IndexError):
    held[2]


def test_the_fingerprint_tells_slices_apart_and_not_folders(folder):
  of = lambda folder, split: TfdsRecords(Tfds('my', str(folder), split)).fingerprint()
  prints = [of(folder, split) for split in ('train', 'train[:5]', 'train[5:]')]
  assert len(set(prints)) == 3
  (folder / 'other').mkdir()
  (folder / 'my').rename(folder / 'other' / 'my')
  assert of(folder / 'other', 'train[:5]') == prints[1]


def test_the_folder_is_tfds_own_unless_given(folder):
  code = "from r1jax.records.tfds import *; print(len(TfdsRecords(Tfds('my'))))"
  env = os.environ | {'TFDS_DATA_DIR': str(folder)}
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True)
  assert out.stdout == b'10\n', out.stderr


def test_a_folder_may_begin_with_a_tilde(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder.parent))
  assert len(TfdsRecords(Tfds('my', f'~/{folder.name}'))) == 10


def test_what_is_not_there_is_said(folder):
  assert refusal('you', str(folder)) == (
    f"no dataset 'you' in {folder}; expected a prepared one, as this makes it: "
    f'python -m r1jax.bin.dataset --source=FILE.jsonl --name=NAME --folder={folder}'
  )
  assert refusal('my:2.0.0', str(folder)).startswith(f"no dataset 'my:2.0.0' in {folder}; ")
  known = f'my/1.0.0 in {folder}/my/1.0.0: no split'
  assert refusal('my', str(folder), 'test') == f"{known} 'test'; known: train"
  assert refusal('my', str(folder), 'train[:x') == (
    f"{known} 'train[:x'; did you mean 'train'? known: train"
  )


def test_a_damaged_row_leaves_others_alone(folder):
  data = bytearray((folder / FILE).read_bytes())
  data[300:310] = b'\xff' * 10
  (folder / FILE).write_bytes(data)
  records, bad = TfdsRecords(Tfds('my', str(folder))), []
  for i in range(10):
    try:
      assert records[i]['n'] == i
    except record.RecordError as error:
      bad.append(i)
      said = str(error)
  assert len(bad) == 1
  assert said.startswith(f'{folder}/{FILE} row {bad[0] + 1} is damaged (')
  assert said.endswith('); make the dataset again')
  assert '\n' not in said


def test_a_file_cut_short_is_refused_before_anything_is_read(folder):
  os.truncate(folder / FILE, 70_000)
  said = f'{folder}/{FILE} holds 0 rows, expected 10; copy or make it again'
  assert refusal('my', str(folder)) == said


def test_damaged_descriptions_and_missing_files_are_refused(folder):
  (folder / FILE).rename(folder / 'away')
  assert refusal('my', str(folder)) == (
    f'{folder}/{FILE} cannot be read: No such file or directory; expected a readable file'
  )
  (folder / 'my/1.0.0/features.json').write_text('{')
  assert refusal('my', str(folder)) == (
    f"dataset 'my' in {folder} cannot be read (Expecting property name enclosed in double quotes: "
    'line 1 column 2 (char 1)); expected one that TFDS prepared'
  )


def test_array_record_is_found_beside_another_format_and_asked_for_if_missing(folder):
  path = folder / 'my/1.0.0'
  info = json.loads((path / 'dataset_info.json').read_text())
  (path / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
  assert refusal('my', str(folder)) == (
    f'{path} has files of format tfrecord, expected array_record; convert them: '
    f'tfds convert_format --dataset_dir={path} --out_file_format=array_record'
  )
  both = {'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']}
  (path / 'dataset_info.json').write_text(json.dumps(info | both))
  assert TfdsRecords(Tfds('my', str(folder)))[9]['n'] == 9


def test_neither_writing_nor_reading_imports_tensorflow_or_jax(tmp_path):
  for name in ('tensorflow', 'jax'):  # so that an import would succeed, and show
    (tmp_path / 'fake' / name).mkdir(parents=True)
    (tmp_path / 'fake' / name / '__init__.py').touch()
  (tmp_path / 'd.jsonl').write_text('{"text": "a"}\n')
  code = f"""
import sys
from r1jax.records import record, write
from r1jax.records.make import Jsonl, Tfds, make
write.write(make(Jsonl('{tmp_path}/d.jsonl')), 'gsm8k', '{tmp_path}')
assert record.text(make(Tfds('gsm8k', '{tmp_path}')), 0, 'text') == 'a'
import tensorflow_datasets
found = sorted(name for name in ('tensorflow', 'jax') if name in sys.modules)
assert not found, found
import tensorflow, jax
assert tensorflow.__file__.startswith('{tmp_path}') and jax.__file__.startswith('{tmp_path}')
"""
  env = os.environ | {'PYTHONPATH': f'{tmp_path}/fake'}
  command = [sys.executable, '-c', code]
  out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert out.returncode == 0, out.stderr
