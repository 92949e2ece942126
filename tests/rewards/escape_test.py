"""Programs that try to get out of the sandbox, to break the machine or to outlive their run.

An attempt prints ESCAPED where its effect was had; what can be seen from outside is looked at from
outside too. Most run once more without the sandbox, as the same user, where they must escape: a
probe that cannot see what it looks for proves nothing. After each, no process is left.
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.sandbox import Bubblewrap, Limits

ROOT = os.name == 'posix' and os.geteuid() == 0
UID = 64_911 if ROOT else os.getuid()  # nobody else's, so that all its processes are ours
BOX = Bubblewrap(uid=UID)
LIMITS = Limits(cpu=1, wall=3, memory=256 << 20, processes=24, output=1 << 16, disk=8 << 20)
PYTHON = ('/usr/bin/python3', '-I', '-S', '-E')
# A shell stands before the program: the first process of a name space is a special one.
COMMAND = ('/bin/sh', '-c', f'{" ".join(PYTHON)} attempt.py; exit $?')


@pytest.fixture(scope='module', autouse=True)
def usable():
  """Skips where there is no sandbox; nothing of its user is there before or after."""
  try:
    BOX.check()
  except UserError as e:
    pytest.skip(str(e))
  assert not left()
  yield
  assert not left() and not files_left()


def left():
  """Processes of the sandbox's user: all of them, or those of attempts where the user is us."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):  # it ended while we looked
      ours = b'attempt' in (folder / 'cmdline').read_bytes()
      if folder.stat().st_uid == UID and (ROOT or ours) and not victim(folder):
        found.append((folder.name, (folder / 'cmdline').read_bytes()))
  return found


def victim(folder):
  """Whether it is the process that attempts attack."""
  return b'victim' in (folder / 'cmdline').read_bytes()


def files_left():
  """Files of the sandbox's user where all may write."""
  if not ROOT:
    return []
  found = []
  for top in ('/tmp', '/var/tmp', '/dev/shm'):
    for path in (*pathlib.Path(top).glob('*'), *pathlib.Path(top).glob('*/*')):
      with contextlib.suppress(OSError):
        found += [path] if path.lstat().st_uid == UID else []
  return found


def assert_nothing_left():
  """Waits up to 3 s for the last process to go."""
  deadline = time.monotonic() + 3
  while left() and time.monotonic() < deadline:
    time.sleep(0.02)
  assert not left()


def as_user():
  """How subprocess starts a program as the sandbox's user."""
  return {'user': UID, 'group': UID, 'extra_groups': []} if ROOT else {}


@dataclasses.dataclass(frozen=True)
class World:
  """What lies outside and is open to everybody: only the sandbox stands before it."""

  folder: pathlib.Path
  victim: subprocess.Popen
  tcp: socket.socket
  udp: socket.socket
  local: socket.socket
  abstract: socket.socket

  def names(self):
    """Lines that tell a program where everything is."""
    return (
      f'FOLDER = {str(self.folder)!r}\nVICTIM = {self.victim.pid}\nGROUP = {os.getpgid(0)}\n'
      f'TCP = {self.tcp.getsockname()!r}\nUDP = {self.udp.getsockname()!r}\n'
      f'LOCAL = {self.local.getsockname()!r}\nABSTRACT = {self.abstract.getsockname()!r}\n'
      f'HOST = {socket.gethostname()!r}\n'
    )

  def touched(self):
    """What changed outside."""
    changes = [p.name for p in self.folder.iterdir() if p.name not in ('secret', 'target', 's')]
    changes += ['target'] * ((self.folder / 'target').read_text() != 'clean')
    changes += ['victim'] * (self.victim.poll() is not None)
    for name in ('tcp', 'udp', 'local', 'abstract'):
      with contextlib.suppress(BlockingIOError):
        one = getattr(self, name)
        changes.append((name, one.recv(99) if name == 'udp' else one.accept()[0].close()))
    return changes

  def clean(self):
    """As it was before a control."""
    self.touched()
    (self.folder / 'target').write_text('clean')
    for path in self.folder.iterdir():
      if path.name not in ('secret', 'target', 's'):
        path.unlink()


@pytest.fixture(scope='module')
def world(usable):
  folder = pathlib.Path(tempfile.mkdtemp(prefix='world'))
  folder.chmod(0o777)
  (folder / 'secret').write_text('secret')
  (folder / 'target').write_text('clean')
  (folder / 'target').chmod(0o666)
  stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
  kinds = [(socket.AF_INET, stream), (socket.AF_INET, datagram), *[(socket.AF_UNIX, stream)] * 2]
  names = [('127.0.0.1', 0), ('127.0.0.1', 0), str(folder / 's'), f'\0r1jax{os.getpid()}']
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket(*kind)) for kind in kinds]
    for one, name in zip(sockets, names):
      one.bind(name)
      one.setblocking(False)
      if one.type == stream:
        one.listen()
    (folder / 's').chmod(0o777)
    quarry = subprocess.Popen(
      [*PYTHON, '-c', 'import time; time.sleep(1000)', 'victim'], **as_user()
    )
    quarry = stack.enter_context(quarry)
    stack.callback(quarry.kill)
    yield World(folder, quarry, *sockets)
  shutil.rmtree(folder)


# Attempts that must escape where there is no sandbox.
ATTEMPTS = {
  'read a file': 'escaped = open(FOLDER + "/secret").read() == "secret"',
  'read by a symbolic link': """
os.symlink(FOLDER, 'link')
escaped = open('link/secret').read() == 'secret'
os.unlink('link')""",
  'read by climbing': 'escaped = open("../../../../.." + FOLDER + "/secret").read() == "secret"',
  'see /etc': 'escaped = any(map(os.path.exists, ("/etc/shadow", "/etc/passwd", "/etc/hostname")))',
  "see the host's folders": 'escaped = any(map(os.path.exists, ("/usr/local", "/opt", "/home")))',
  'see /proc': 'escaped = os.path.exists(f"/proc/{VICTIM}/status") or os.path.exists("/proc/self")',
  'see /sys': 'escaped = os.path.exists("/sys/kernel")',
  'see devices': """
names = '/dev/mem', '/dev/kmsg', '/dev/tty', '/dev/ptmx', '/dev/shm'
escaped = any(map(os.path.exists, names))""",
  'see the name of the host': 'escaped = os.uname().nodename == HOST',
  'write a file': 'open(FOLDER + "/target", "w").write("x")\nescaped = True',
  'make a file': 'open(FOLDER + "/new", "w").write("x")\nescaped = True',
  'write by a symbolic link': """
os.symlink(FOLDER + '/target', 'link')
open('link', 'w').write('x')
escaped = True
os.unlink('link')""",
  'link a file into the box': """
os.link(FOLDER + '/target', FOLDER + '/hard')
open(FOLDER + '/hard', 'w').write('x')
escaped = True""",
  'connect by TCP': 'import socket\nescaped = bool(socket.create_connection(TCP, 1))',
  'send by UDP': """
import socket
escaped = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', UDP) == 1""",
  'resolve a name': """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 53))
escaped = True""",
  'listen': """
import socket
one = socket.socket()
one.bind(('127.0.0.1', 0))
one.listen()
escaped = True""",
  'connect to a socket file': """
import socket
socket.socket(socket.AF_UNIX).connect(LOCAL)
escaped = True""",
  'connect to an abstract socket': """
import socket
socket.socket(socket.AF_UNIX).connect(ABSTRACT)
escaped = True""",
  'send from a socket pair': """
import socket
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.bind(FOLDER + '/mine')
left, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
escaped = left.sendto(b'x', FOLDER + '/mine') == 1""",
  'signal a process': 'os.kill(VICTIM, 0)\nescaped = True',
  'trace a process': """
import ctypes
libc = ctypes.CDLL(None)
escaped = libc.ptrace(16, VICTIM, 0, 0) == 0""",
  'read memory by process number': """
import ctypes
libc = ctypes.CDLL(None)
class Span(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
mine = ctypes.create_string_buffer(b'x' * 8)
span = Span(ctypes.addressof(mine), 8)
span = ctypes.byref(span)
escaped = libc.process_vm_readv(os.getpid(), span, 1, span, 1, 0) == 8""",
  'fork bomb': """
made = 0
while made < 60:
  if os.fork() == 0:
    time.sleep(0.2)
    os._exit(0)
  made += 1
escaped = True""",
  'thread bomb': """
import threading
for _ in range(60):
  threading.Thread(target=time.sleep, args=(0.2,)).start()
escaped = True""",
  'memory of one process': 'escaped = len(bytearray(512 << 20)) > 0',
  'one large file': """
with open('large', 'wb') as file:
  for _ in range(24):
    file.write(bytes(1 << 20))
    file.flush()
os.unlink('large')
escaped = True""",
  'many files': """
for i in range(24):
  open(f'part{i}', 'wb').write(bytes(1 << 20))
escaped = True
for i in range(24):
  os.unlink(f'part{i}')""",
  'files without a name': """
kept = [os.open('.', os.O_TMPFILE | os.O_RDWR) for _ in range(24)]
escaped = all(os.write(one, bytes(1 << 20)) == 1 << 20 for one in kept)""",
  'secrets of the environment': 'escaped = "R1JAX_SECRET" in os.environ',
  'programs with the set-user bit': 'escaped = not os.statvfs("/usr/bin").f_flag & os.ST_NOSUID',
  'a core file': """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
escaped = True""",
  'more open files': """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
escaped = True""",
  'a new user name space by its program': """
import subprocess
escaped = subprocess.run(['/usr/bin/unshare', '-U', '/bin/true']).returncode == 0""",
}  # fmt: skip
# Attempts that root's or the kernel's own care stops outside too, or that would do harm there.
BLIND = {
  'write to /usr': 'open("/usr/bin/r1jax", "w").write("x")\nescaped = True',
  'write to the root': 'open("/r1jax", "w").write("x")\nescaped = True',
  'write to /dev': 'open("/dev/r1jax", "w").write("x")\nescaped = True',
  'write to its standard input': 'os.write(0, b"x")\nescaped = True',
  'a device node': 'os.mknod("node", 0o20600, os.makedev(1, 1))\nescaped = True',
  'be root': 'escaped = 0 in (os.getuid(), os.geteuid(), os.getgid())',
  'signal everybody': 'os.kill(-1, 9)',
  'signal the group of the tests': 'os.killpg(GROUP, 9)\nescaped = True',
  'kill the first process': """
os.kill(1, 9)
os.kill(os.getppid(), 9)""",
  'raise its limits': """
import resource
for name in ('AS', 'NPROC', 'FSIZE', 'CPU', 'STACK', 'MEMLOCK'):
  limit = getattr(resource, 'RLIMIT_' + name)
  try:
    resource.setrlimit(limit, 2 * (resource.getrlimit(limit)[1] + 1,))
    escaped = True
  except (OSError, ValueError): 0""",
  'more descriptors than three': """
for i in range(3, 256):
  try:
    os.fstat(i)
    escaped = True
  except OSError: 0""",
  'zombie children': """
for _ in range(10):
  if os.fork() == 0: os._exit(0)""",
  'a daemon': """
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    time.sleep(1000)""",
  'a daemon that holds the pipes and forks on': """
if os.fork() == 0:
  os.setsid()
  while True:
    try:
      if os.fork(): os._exit(0)
    except OSError: 0""",
}  # fmt: skip


def program(world, body):
  """The text of an attempt."""
  return (
    f'import os, signal, sys, time\n{world.names()}escaped = False\n'
    f'try:\n' + ''.join(f'  {line}\n' for line in body.strip().splitlines())
    + 'except (OSError, ValueError, MemoryError, RuntimeError) as e: print(repr(e))\n'
    'if escaped: print("ESCAPED")\nsys.stdout.flush()\nos._exit(0)\n'
  )  # fmt: skip


def attempt(world, body, limits=LIMITS, stdin=b''):
  """Runs it in the sandbox; nothing outside may change, nothing may be left."""
  result = BOX.run(COMMAND, {'attempt.py': program(world, body).encode()}, stdin, limits)
  assert b'Traceback' not in result.stderr, result.stderr.decode()
  assert world.touched() == []
  assert_nothing_left()
  return result


@pytest.mark.parametrize('name', ATTEMPTS)
def test_stopped_in_the_sandbox_and_seen_to_escape_outside(name, world, monkeypatch):
  monkeypatch.setenv('R1JAX_SECRET', 'secret')
  result = attempt(world, ATTEMPTS[name])
  assert b'ESCAPED' not in result.stdout, result.stdout.decode()

  path = world.folder / 'control.py'
  path.write_text(program(world, ATTEMPTS[name]))
  home = tempfile.mkdtemp(prefix='control')
  os.chmod(home, 0o777)
  try:
    control = subprocess.run(
      [*PYTHON, str(path)], cwd=home, capture_output=True, text=True, timeout=20,
      env={'R1JAX_SECRET': 'secret'}, **as_user(),
    )  # fmt: skip
  finally:
    shutil.rmtree(home)
    world.clean()
  deadline = time.monotonic() + 3  # the children of its fork bomb
  while left() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert 'ESCAPED' in control.stdout, control


@pytest.mark.parametrize('name', BLIND)
def test_stopped_in_the_sandbox(name, world):
  result = attempt(world, BLIND[name], stdin=b'given')
  assert result.end in ('exit', 'cpu') and b'ESCAPED' not in result.stdout, result
  assert not any(map(os.path.exists, ('/usr/bin/r1jax', '/r1jax', '/dev/r1jax')))


def test_the_check_for_what_is_left_finds_it(world):
  with subprocess.Popen(['/bin/sh', '-c', 'sleep 1000; : attempt'], **as_user()) as process:
    try:
      assert any(str(process.pid) == pid for pid, _ in left())
    finally:
      process.kill()
      process.wait()  # first: until it is gone it may start its child behind our look
      for pid, _ in left():
        os.kill(int(pid), signal.SIGKILL)


SPIN = 'while True: 0'
ENDS = {
  'busy loop': (SPIN, ('cpu',)),
  'busy loop that ignores signals': (
    f'for s in {{*range(1, 32)}} - {{9, 19}}: signal.signal(s, signal.SIG_IGN)\n{SPIN}', ('cpu',)),
  'many busy processes': (f'for _ in range(3): os.fork()\n{SPIN}', ('cpu', 'wall')),
  'sleep': ('time.sleep(1000)', ('wall',)),
  'sleep behind closed pipes': ('os.closerange(0, 99)\ntime.sleep(1000)', ('wall',)),
  'stopped by itself': ('os.kill(os.getpid(), signal.SIGSTOP)', ('wall',)),
  'memory of many processes': ("""
for _ in range(8):
  if os.fork() == 0:
    x = bytearray(b'x' * (100 << 20))
    time.sleep(9)
time.sleep(9)""", ('memory',)),
  'huge output': ('while True: os.write(1, b"x" * 65536)', ('output',)),
  'huge error output': ('while True: os.write(2, b"x" * 65536)', ('output',)),
}  # fmt: skip


@pytest.mark.parametrize('name', ENDS)
def test_a_limit_ends_it_in_time(name, world):
  body, ends = ENDS[name]
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  limits = dataclasses.replace(LIMITS, wall=15.0 if ends == ('cpu',) else 1.0)
  begin = time.monotonic()
  result = attempt(world, body, limits)
  assert time.monotonic() - begin < limits.wall + 2
  assert result.end in ends
  assert len(result.stdout) <= limits.output and len(result.stderr) <= limits.output
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 32 << 10  # KiB


def test_nothing_stays_for_the_next_run(world):
  write = 'open("/tmp/mark", "w").write("x")\nescaped = os.path.exists("/tmp/mark")'
  assert b'ESCAPED' in attempt(world, write).stdout
  result = attempt(world, 'escaped = os.listdir("/tmp") != ["attempt.py"]\nprint("ran")')
  assert b'ESCAPED' not in result.stdout and b'ran' in result.stdout


def test_workers_do_not_see_each_other(world):
  def other():
    other = Bubblewrap(uid=UID + 1 if ROOT else None)
    files = {'attempt.py': b'import os\nopen("/tmp/mark", "w").write("x")\nos.read(0, 1)\n'}
    command = ('/bin/sh', '-c', f'{" ".join(PYTHON)} attempt.py; sleep 1.5; exit $?')
    other.run(command, files, b'', LIMITS)

  beside = threading.Thread(target=other)
  beside.start()
  time.sleep(0.5)
  look = """
escaped = os.path.exists('/tmp/mark')
for pid in range(1, 1000):
  try:
    os.kill(pid, 0)
    escaped |= pid not in (1, os.getpid())
  except ProcessLookupError: 0"""
  result = BOX.run(COMMAND, {'attempt.py': program(world, look).encode()}, b'', LIMITS)
  assert beside.is_alive()
  assert b'ESCAPED' not in result.stdout and result.end == 'exit'
  beside.join()
  assert_nothing_left()


def test_descriptors_that_the_parent_leaves_open_do_not_get_in(world):
  with open(world.folder / 'secret') as file:
    os.set_inheritable(file.fileno(), True)
    result = attempt(world, BLIND['more descriptors than three'])
    assert b'ESCAPED' not in result.stdout
    control = subprocess.run(
      [*PYTHON, '-c', program(world, BLIND['more descriptors than three'])],
      capture_output=True, close_fds=False,
    )  # fmt: skip
    assert b'ESCAPED' in control.stdout
