"""The sandbox's own contract, and that without one nothing runs."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import sandbox, seccomp
from r1jax.rewards.sandbox import Bubblewrap, Limits

ROOT = os.geteuid() == 0
PYTHON = ('/usr/bin/python3', '-I', '-S', '-E', '-c')


@contextlib.contextmanager
def fake(script):
  """A program in bwrap's place that all may run."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    path = pathlib.Path(folder) / 'bwrap'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    yield str(path)


def refusal(box):
  """The line with which it refuses, at the check and at a run alike."""
  lines = []
  for act in (box.check, lambda: box.run(['/usr/bin/true'], {}, b'', Limits())):
    with pytest.raises(UserError) as e:
      act()
    lines.append(str(e.value))
  assert lines[0] == lines[1]
  assert '\n' not in lines[0] and 'rewards.sandbox.Sandbox' in lines[0] and 'remote' in lines[0]
  return lines[0]


def test_without_bubblewrap_it_refuses():
  assert "no program 'no-such-bwrap'" in refusal(Bubblewrap(path='no-such-bwrap'))


@pytest.mark.skipif(sys.platform != 'linux', reason='refused before')
def test_where_bubblewrap_fails_it_refuses(monkeypatch):
  monkeypatch.setattr(seccomp, 'program', lambda: b'')
  for message in ('bwrap: setting up uid map: Permission denied', 'bwrap: Unknown option --size'):
    with fake(f'echo "{message}" >&2; exit 1') as path:
      assert message in refusal(Bubblewrap(path=path))


@pytest.mark.skipif(sys.platform != 'linux', reason='refused before')
def test_without_a_filter_it_refuses(monkeypatch):
  def program():
    raise ImportError('No module named pyseccomp')

  monkeypatch.setattr(seccomp, 'program', program)
  with fake('exit 0') as path:
    assert 'pip install pyseccomp' in refusal(Bubblewrap(path=path))


@pytest.mark.skipif(sys.platform != 'linux', reason='refused before')
def test_without_another_user_root_is_refused(monkeypatch):
  def popen(*_, **__):
    raise PermissionError('Operation not permitted')

  monkeypatch.setattr(seccomp, 'program', lambda: b'')
  monkeypatch.setattr(os, 'geteuid', lambda: 0)
  with fake('exit 0') as path:
    assert 'uid=0' in refusal(Bubblewrap(uid=0, path=path))
    monkeypatch.setattr(subprocess, 'Popen', popen)
    assert 'does not start as uid 64999' in refusal(Bubblewrap(uid=64_999, path=path))


def test_other_systems_are_refused(monkeypatch):
  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert 'this is darwin' in refusal(Bubblewrap(path='bwrap-of-darwin'))


def test_files_input_output_and_status(box):
  source = b'import sys; print(open("data").read() + input()); sys.stderr.write("e"); sys.exit(7)'
  files = {'a.py': source, 'data': b'x' * 200_000}
  result = box.run([*PYTHON[:-1], 'a.py'], files, b'line\n', Limits())
  assert result == ('exit', 7, b'x' * 200_000 + b'line\n', b'e')


def test_large_input_does_not_block_a_program_that_does_not_read_it(box):
  begin = time.monotonic()
  assert box.run(['/usr/bin/true'], {}, b'x' * 10**7, Limits()).end == 'exit'
  assert time.monotonic() - begin < 5


def test_a_signal_is_a_status_as_in_a_shell(box):
  command = ['/bin/sh', '-c', f'{" ".join(PYTHON)} "import os; os.abort()"; exit $?']
  assert box.run(command, {}, b'', Limits()).status == 134


def test_a_command_that_is_not_there_is_127_as_in_a_shell(box):
  assert box.run(['/usr/bin/no-such'], {}, b'', Limits()).status == 127


def test_it_runs_as_the_user_that_was_given_and_never_as_root(box):
  tell = [*PYTHON, 'import os; print(os.getuid(), os.getgid(), os.getgroups())']
  uid = int(box.run(tell, {}, b'', Limits()).stdout.split()[0])
  assert uid == (65_000 + os.getpid() % 534 if ROOT else os.getuid())
  if ROOT:
    given = Bubblewrap(uid=64_913).run(tell, {}, b'', Limits()).stdout
    assert given == b'64913 64913 []\n'


@pytest.mark.skipif(not ROOT, reason='it is what all other tests do')
def test_it_works_for_a_user_who_is_not_root(box):
  import pyseccomp

  code = (
    'import importlib.util, os, sys\n'
    'from r1jax.rewards.sandbox import Bubblewrap, Limits\n'
    'r = Bubblewrap().run(["/usr/bin/python3", "-c", "import os; print(os.getuid())"], {}, b"", '
    'Limits(processes=4))\n'
    'print(r.end, int(r.stdout) == os.getuid() != 0)\n'
  )
  root = pathlib.Path(sandbox.__file__).parents[2]
  with tempfile.TemporaryDirectory() as folder:  # ours may lie where only root may look
    os.chmod(folder, 0o755)
    for path in ('core/errors.py', 'rewards/sandbox.py', 'rewards/seccomp.py'):
      target = pathlib.Path(folder) / 'r1jax' / path
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_text((root / 'r1jax' / path).read_text())
    (pathlib.Path(folder) / 'pyseccomp.py').write_text(pathlib.Path(pyseccomp.__file__).read_text())
    done = subprocess.run(
      ['/usr/bin/python3', '-c', code], env={'PYTHONPATH': folder}, cwd='/', capture_output=True,
      text=True, user=64_914, group=64_914, extra_groups=[],
    )  # fmt: skip
  assert done.stdout == 'exit True\n', done.stderr


def test_limits_on_disk_do_not_count_the_files_given(box):
  write = 'open("x", "wb").write(bytes({}))'
  limits = Limits(disk=1 << 20)
  files = {'big': bytes(4 << 20)}
  assert box.run([*PYTHON, write.format(900 << 10)], files, b'', limits).status == 0
  assert box.run([*PYTHON, write.format(1100 << 10)], files, b'', limits).status == 1


def test_a_limit_above_our_own_is_ours(box):
  code = (
    'import resource\n'
    'from r1jax.rewards.sandbox import Bubblewrap, Limits\n'
    'resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n'
    'tell = ["/usr/bin/prlimit", "--nofile", "-o", "HARD", "--noheadings"]\n'
    'print(Bubblewrap().run(tell, {}, b"", Limits()).stdout.decode().strip())\n'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.stdout == '200\n', done.stderr


def test_many_runs_leave_no_process_and_no_descriptor(box):
  def count():
    return len(os.listdir('/proc/self/fd')), len(sandbox._children(os.getpid()))

  before = count()
  for end, command in (('exit', ['/usr/bin/true']), ('wall', ['/usr/bin/sleep', '9'])):
    for _ in range(5):
      assert box.run(command, {}, b'', dataclasses.replace(Limits(), wall=0.2)).end == end
  assert count() == before


def test_an_interrupt_ends_the_run(box, monkeypatch):
  def watch(*_):
    raise KeyboardInterrupt

  before = sandbox._children(os.getpid())
  monkeypatch.setattr(sandbox, '_watch', watch)
  with pytest.raises(KeyboardInterrupt):
    box.run(['/usr/bin/sleep', '1000'], {}, b'', Limits())
  assert sandbox._children(os.getpid()) == before
