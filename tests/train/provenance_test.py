"""Provenance: complete where it can be, None where it cannot, never an error."""

import json
import subprocess

import jax
import pytest

from r1jax.train import provenance


def run(folder, *args):
  name = ('-c', 'user.name=a', '-c', 'user.email=a@b')
  subprocess.run(['git', '-C', str(folder), *name, *args], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
  (tmp_path / 'pkg').mkdir()
  (tmp_path / 'pkg' / 'a.py').write_text('1\n')
  run(tmp_path, 'init')
  run(tmp_path, 'add', '.')
  run(tmp_path, 'commit', '-m', 'one')
  return tmp_path


def test_record():
  made = provenance.record()
  assert made['versions']['jax'] == jax.__version__
  assert set(made['versions']) == {'python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'r1jax'}
  assert made['platform'] == 'cpu'
  assert made['devices'] == {'kind': 'cpu', 'count': jax.device_count(), 'processes': 1}
  assert made['started'].endswith('+00:00')
  json.dumps(made, allow_nan=False)


def test_git_revision_and_changes(checkout):
  clean = provenance.git(checkout / 'pkg')
  assert len(clean['revision']) == 40 and clean['dirty'] is False
  assert provenance.short(clean) == clean['revision'][:7]
  (checkout / 'pkg' / 'a.py').write_text('2\n')
  assert provenance.git(checkout / 'pkg') == {**clean, 'dirty': True}
  assert provenance.short(provenance.git(checkout / 'pkg')) == clean['revision'][:7] + '+'


def test_a_package_inside_a_foreign_checkout_has_no_revision(checkout):
  (checkout / 'site-packages').mkdir()
  (checkout / 'site-packages' / 'b.py').write_text('')
  assert provenance.git(checkout / 'site-packages') is None


def test_outside_git_and_without_git(tmp_path, monkeypatch):
  assert provenance.git(tmp_path) is None and provenance.git(tmp_path / 'nowhere') is None
  monkeypatch.setenv('PATH', '')
  assert provenance.git() is None and provenance.short(None) == ''
  assert provenance.record()['git'] is None
  assert provenance.version('no-such-distribution') is None


def test_write(tmp_path):
  made = provenance.record()
  provenance.write(tmp_path / 'run', '{"lr": 0.1}', made)
  assert json.loads((tmp_path / 'run' / 'config.json').read_text()) == {'lr': 0.1}
  assert json.loads((tmp_path / 'run' / 'run.json').read_text()) == made
  assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['config.json', 'run.json']
