"""What appears is whole; what fails leaves nothing."""

import pathlib

import pytest

from r1jax.core.errors import UserError
from r1jax.curate import output


def test_a_file_appears_at_the_end(tmp_path):
  path = tmp_path / 'new' / 'a.jsonl'
  with output.file(path) as out:
    out.write('x')
    assert not path.exists()
  assert path.read_text() == 'x' and list(path.parent.iterdir()) == [path]


def test_an_interrupt_leaves_nothing_new_and_what_was_there(tmp_path):
  (tmp_path / 'a').write_text('old')
  with pytest.raises(KeyboardInterrupt), output.file(tmp_path / 'a') as out:
    out.write('new')
    raise KeyboardInterrupt
  assert [p.name for p in tmp_path.iterdir()] == ['a'] and (tmp_path / 'a').read_text() == 'old'


def test_folders_too(tmp_path):
  for name in ('x', 'y'):
    with output.folder(tmp_path / 'f') as folder:
      for made in (name, output.ABOUT):
        (folder / made).touch()
  assert sorted(p.name for p in (tmp_path / 'f').iterdir()) == [output.ABOUT, 'y']
  with pytest.raises(KeyboardInterrupt), output.folder(tmp_path / 'f') as folder:
    (folder / 'z').touch()
    raise KeyboardInterrupt
  found = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))]
  assert found == ['f', 'f/about.json', 'f/y']


def test_another_folder_is_never_replaced(tmp_path):
  (tmp_path / 'f').mkdir()
  output.check(tmp_path / 'f', True, True)  # it is empty
  (tmp_path / 'f' / 'thesis').touch()
  said = pytest.raises(UserError, match=r'f holds no about\.json, so it is no folder of logits')
  with said:
    output.check(tmp_path / 'f', True, True)
  with said, output.folder(tmp_path / 'f'):
    pass
  found = [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))]
  assert found == ['f', 'f/thesis']


def test_the_old_folder_is_there_until_the_new_one_is(tmp_path, monkeypatch):
  (tmp_path / 'f').mkdir()
  (tmp_path / 'f' / output.ABOUT).write_text('old')
  rename = pathlib.Path.rename

  def interrupted(path, to):
    if path.name == '.f.tmp':
      raise KeyboardInterrupt
    return rename(path, to)

  monkeypatch.setattr(pathlib.Path, 'rename', interrupted)
  with pytest.raises(KeyboardInterrupt), output.folder(tmp_path / 'f') as folder:
    (folder / output.ABOUT).write_text('new')
  assert (tmp_path / 'f' / output.ABOUT).read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['f']


def test_a_taken_name_is_refused_unless_it_may_be_replaced(tmp_path):
  output.check(tmp_path / 'a', False, False)
  (tmp_path / 'a').touch()
  output.check(tmp_path / 'a', True, False)
  with pytest.raises(UserError, match='exists; choose another --out, or --overwrite it'):
    output.check(tmp_path / 'a', False, False)
  with pytest.raises(UserError, match='a is a file, what is made is a folder; choose another --ou'):
    output.check(tmp_path / 'a', True, True)
  with pytest.raises(UserError, match='is a folder, what is made is a file; choose another --out'):
    output.check(tmp_path, True, False)
