"""Which files a pattern names, in which order, and what their fingerprint depends on."""

import os

import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.records import paths


def tree(folder, **files):
  for name, size in files.items():
    path = folder / name.replace('__', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('x' * size)
  return folder


def test_patterns_reach_folders_and_are_sorted(tmp_path):
  tree(tmp_path, b=2, a=1, x__c=3, x__y__a=4)
  names = lambda pattern: [(f.name, f.size) for f in paths.find(f'{tmp_path}/{pattern}')]
  assert names('*') == [('a', 1), ('b', 2)]
  assert names('**') == [('a', 1), ('b', 2), ('x/c', 3), ('x/y/a', 4)]
  assert names('**/**/a') == [('a', 1), ('x/y/a', 4)]
  assert names('x/[a-c]') == [('c', 3)]
  assert names('x/c') == [('c', 3)]


def test_a_name_with_a_wildcard_in_it_is_a_file(tmp_path):
  tree(tmp_path, **{'a[1]': 1, 'a1': 2})
  assert [f.name for f in paths.find(str(tmp_path / 'a[1]'))] == ['a[1]']


def test_paths_stay_as_they_were_written(tmp_path, monkeypatch):
  tree(tmp_path, d__a=1)
  monkeypatch.chdir(tmp_path)
  assert paths.find('d/*') == paths.find('d/a') == [paths.File('d/a', 'a', 1)]
  monkeypatch.setenv('HOME', str(tmp_path))
  assert paths.find('~/d/a') == [paths.File(f'{tmp_path}/d/a', 'a', 1)]


def test_what_is_no_file_is_said(tmp_path):
  tree(tmp_path, d__a=1)
  os.symlink('nowhere', tmp_path / 'd' / 'link')
  hint = 'expected the path of a file, or a pattern with * or **'
  for given, said in {
    'b': f'no file at {tmp_path}/b; {hint}',
    'b*': f'no file matches {tmp_path}/b*; {hint}',
    'd': f'{tmp_path}/d is a folder; expected a file or a pattern such as {tmp_path}/d/*',
    'd/l*': f'{tmp_path}/d/link cannot be read: No such file or directory; '
    'expected a readable file',
  }.items():
    with pytest.raises(UserError) as error:
      paths.find(str(tmp_path / given))
    assert str(error.value) == said


def test_the_fingerprint_knows_names_sizes_and_rows_but_not_the_place(tmp_path):
  def of(folder, rows=5, **files):
    return paths.fingerprint(paths.find(f'{tree(tmp_path / folder, **files)}/**'), rows)

  same = of('one', a=1, x__b=2)
  assert same == of('two', a=1, x__b=2)
  others = [of('3', a=1, x__b=3), of('4', a=1, y__b=2), of('5', a=1), of('6', 6, a=1, x__b=2)]
  assert len({same, *others}) == 5
  assert len(same) == 16 and int(same, 16) >= 0


def test_rows_are_located_in_files():
  starts = np.array([0, 2, 2, 5])
  assert [paths.locate(starts, i) for i in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
  for i in (-1, 5):
    with pytest.raises(IndexError, match=f'row {i} of 5'):
      paths.locate(starts, i)


def test_reasons_are_one_line():
  assert paths.reason(ValueError('\n\none\ntwo')) == 'one'
  assert paths.reason(ValueError()) == 'ValueError'
