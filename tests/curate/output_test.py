"""What appears is whole; what fails leaves nothing."""

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
      (folder / name).touch()
  assert [p.name for p in (tmp_path / 'f').iterdir()] == ['y']
  with pytest.raises(KeyboardInterrupt), output.folder(tmp_path / 'f') as folder:
    (folder / 'z').touch()
    raise KeyboardInterrupt
  assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))] == ['f', 'f/y']


def test_a_taken_name_is_refused_unless_it_may_be_replaced(tmp_path):
  output.check(tmp_path / 'a', False)
  (tmp_path / 'a').touch()
  output.check(tmp_path / 'a', True)
  with pytest.raises(UserError, match='exists; choose another --out, or --overwrite it'):
    output.check(tmp_path / 'a', False)
