"""Where code that nobody trusts runs: one interface, and bubblewrap behind it.

`Sandbox.run(command, files, stdin, limits) -> Result` is all that a verifier sees; a client of a
remote sandbox is another class with that method. `Bubblewrap` starts one jail a run:

    own user, mount, process, network, IPC, host name and cgroup name spaces; no capabilities;
    read-only /usr/{bin,lib,lib64,libexec,include}, five harmless devices, no /proc, /sys, /etc;
    /tmp, which holds `files` and is the working directory: a tmpfs of `limits.disk` bytes;
    an empty environment, no descriptors but 0, 1, 2, no terminal; the calls of seccomp.py only.

The command is the first process of its name space: when it ends or is killed, the kernel kills all
that it started, and `run` returns when they are gone. Its process limit counts inside the jail, for
the kernel (≥ 5.14) counts by user name space. Root first becomes an unprivileged user, one for each
worker, since no process limit binds root.

Where this cannot be had, the run is refused, never made without it. Bounded only by the time: the
kernel's own memory for empty files (65 MB a second, measured, and freed with the run).

Source: github.com/containers/bubblewrap, bwrap(1). Cost: 15 ms a run beside the command's own.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import pathlib
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from r1jax.core.errors import UserError
from r1jax.rewards import seccomp

_SYSTEM = ('bin', 'lib', 'lib64', 'libexec', 'include')
_APART = (
  '--unshare-all --die-with-parent --new-session --as-pid-1 --cap-drop ALL --hostname box '
  '--clearenv --setenv PATH /usr/bin --setenv HOME /tmp --setenv LANG C.UTF-8'
)
_DEVICES = ('null', 'zero', 'full', 'random', 'urandom')
_FIRST_UID, _UIDS = 65_000, 534  # reserved by Debian, below nobody's, mapped in most containers
_TICK = 0.05  # seconds between two looks at memory
_KILLED = 128 + signal.SIGKILL.value
# The first process of a name space does not feel the warning, and nothing inside can kill it.
_OVER = (128 + signal.SIGXCPU.value, _KILLED)
_END_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of one run. `cpu`: seconds of each process. `wall`: seconds of the whole run. `memory`:
  bytes, of address space of each process and resident of all together. `processes`: threads count.
  `output`: bytes on stdout and stderr. `disk`: bytes beside the files given.
  """

  cpu: float = 10.0
  wall: float = 10.0
  memory: int = 1 << 30
  processes: int = 32
  output: int = 1 << 20
  disk: int = 64 << 20


class Result(NamedTuple):
  """How a run ended ('exit': by itself), its exit status as a shell gives it, what it printed."""

  end: Literal['exit', 'wall', 'cpu', 'memory', 'output']
  status: int
  stdout: bytes
  stderr: bytes


class Sandbox(Protocol):
  """Runs a command away from everything."""

  def run(
    self, command: Sequence[str], files: Mapping[str, bytes], stdin: bytes, limits: Limits
  ) -> Result:
    """Runs it in a fresh folder that holds the files; raises only if there is no sandbox."""
    ...


@dataclasses.dataclass(frozen=True)
class Bubblewrap:
  """The sandbox of this machine; a run dies with the thread that made it.

  `uid`: whom root becomes, by default one of 65000–65533 by process number; `path`: program bwrap.
  """

  uid: int | None = None
  path: str = 'bwrap'

  def check(self) -> None:
    """Raises a UserError where the sandbox cannot be had; call it before long work."""
    _ready(self)

  def run(
    self, command: Sequence[str], files: Mapping[str, bytes], stdin: bytes, limits: Limits
  ) -> Result:
    """See Sandbox; Linux only."""
    return _run(self, _ready(self), command, files, stdin, limits)


def _refusal(cause: str) -> UserError:
  return UserError(
    f'code is not verified here, since {cause}; expected Linux ≥ 5.14 with bubblewrap ≥ 0.7, user '
    'name spaces and pyseccomp, or another sandbox behind rewards.sandbox.Sandbox, such as a '
    'client of a remote one'
  )


@functools.lru_cache
def _ready(box: Bubblewrap) -> bytes:
  """The seccomp filter, after one run that shows that all of it works."""
  if sys.platform != 'linux':
    raise _refusal(f'bubblewrap needs Linux and this is {sys.platform}')
  if shutil.which(box.path) is None:
    raise _refusal(f'there is no program {box.path!r} (apt install bubblewrap)')
  if os.geteuid() == 0 and box.uid == 0:
    raise _refusal('uid=0 was given and no process limit binds root')
  try:
    allowed = seccomp.program()
  except (ImportError, OSError, RuntimeError) as e:
    raise _refusal(f'pyseccomp does not load ({e}; pip install pyseccomp)') from e
  result = _run(box, allowed, ['/usr/bin/true'], {}, b'', Limits())
  if result.status:
    raise _refusal(f'a test run ended with status {result.status}: {_line(result.stderr)}')
  return allowed


def _run(
  box: Bubblewrap,
  allowed: bytes,
  command: Sequence[str],
  files: Mapping[str, bytes],
  stdin: bytes,
  limits: Limits,
) -> Result:
  with contextlib.ExitStack() as stack:
    hold = lambda data: stack.enter_context(_holding(data))
    status_in, status_out = os.pipe()
    status = stack.enter_context(open(status_in, 'rb'))
    with open(status_out, 'wb'):
      jail, descriptors = [*_jail(limits, files)], [status_out, hold(allowed)]
      for name, data in files.items():
        descriptors.append(hold(data))
        jail += ['--file', str(descriptors[-1]), f'/tmp/{name}']
      jail += ['--json-status-fd', str(status_out), '--seccomp', str(descriptors[1])]
      jail += ['--', *_limited(limits), *command]
      process = stack.enter_context(_start(box, jail, hold(stdin), descriptors))
    try:
      end, out, err = _watch(process, limits)
    finally:
      _kill(process)
    told = [json.loads(line) for line in status.read().splitlines()]
  code = next((t['exit-code'] for t in told if 'exit-code' in t), None)
  if code is None and end == 'exit':
    raise _refusal(f'bwrap failed ({_line(err)})')
  if end == 'exit' and code in _OVER:
    end = 'cpu'
  return Result(end, _KILLED if code is None else code, out, err)


def _jail(limits: Limits, files: Mapping[str, bytes]) -> list[str]:
  """Arguments of bwrap that do not depend on descriptors."""
  disk = limits.disk + sum(-(-len(data) // 4096) * 4096 for data in files.values())
  args = _APART.split()
  for name in _SYSTEM:
    args += ['--ro-bind-try', f'/usr/{name}', f'/usr/{name}']
    if os.path.islink(f'/{name}'):
      args += ['--symlink', f'usr/{name}', f'/{name}']
    elif name in ('bin', 'lib', 'lib64'):
      args += ['--ro-bind-try', f'/{name}', f'/{name}']
  for name in _DEVICES:
    args += ['--dev-bind', f'/dev/{name}', f'/dev/{name}']
  # The root is a tmpfs too, of no size: it is closed once everything is in place.
  return [*args, '--size', str(disk), '--tmpfs', '/tmp', '--remount-ro', '/', '--chdir', '/tmp']


def _limited(limits: Limits) -> list[str]:
  """The command that sets limits, inside, where the count of processes starts from zero."""
  cpu = max(1, math.ceil(limits.cpu))
  wanted = {
    'as': limits.memory, 'nproc': limits.processes, 'fsize': limits.disk, 'nofile': 256,
    'stack': min(64 << 20, limits.memory), 'core': 0, 'memlock': 0, 'msgqueue': 0,
  }  # fmt: skip
  ours = {n: resource.getrlimit(getattr(resource, f'RLIMIT_{n.upper()}'))[1] for n in wanted}
  # A limit above our own would be refused; a worker has one of its own on memory.
  least = {
    n: v if ours[n] == resource.RLIM_INFINITY else min(v, ours[n]) for n, v in wanted.items()
  }
  args = [f'--{name}={value}' for name, value in least.items()]
  # A warning signal by which the end is known, and death a second later.
  return ['/usr/bin/prlimit', f'--cpu={cpu}:{cpu + 1}', *args, '--']


@contextlib.contextmanager
def _holding(data: bytes):
  """A descriptor at the start of a file in memory that nobody can change."""
  descriptor = os.memfd_create('sandbox', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
  try:
    with open(descriptor, 'wb', closefd=False) as file:
      file.write(data)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    yield descriptor
  finally:
    os.close(descriptor)


def _start(
  box: Bubblewrap, args: Sequence[str], stdin: int, descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
  """Starts bwrap; root becomes somebody first."""
  user = {}
  if os.geteuid() == 0:
    uid = _FIRST_UID + os.getpid() % _UIDS if box.uid is None else box.uid
    user = {'user': uid, 'group': uid, 'extra_groups': []}
  try:
    return subprocess.Popen(
      [shutil.which(box.path) or box.path, *args], stdin=stdin, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, pass_fds=descriptors, env={}, cwd='/', bufsize=0, **user,
    )  # fmt: skip
  except (OSError, ValueError, subprocess.SubprocessError) as e:
    who = f' as uid {user["user"]}' if user else ''
    raise _refusal(f'{box.path!r} does not start{who} ({e})') from e


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> tuple[str, bytes, bytes]:
  """Reads until the jail is empty or a limit is passed; why it ended, and what was read."""
  printed = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
  deadline, end = time.monotonic() + limits.wall, 'exit'
  with open(os.pidfd_open(process.pid), 'rb') as life, selectors.DefaultSelector() as selector:
    for source in (life, *printed):
      selector.register(source, selectors.EVENT_READ)
    look = time.monotonic() + _TICK
    while selector.get_map() and end == 'exit':
      for key, _ in selector.select(max(0.0, min(look, deadline) - time.monotonic())):
        chunk = b'' if key.fileobj is life else os.read(key.fd, 1 << 16)
        if not chunk:
          selector.unregister(key.fileobj)
        else:
          printed[key.fd] += chunk
      now = time.monotonic()
      if sum(map(len, printed.values())) > limits.output:
        end = 'output'
      elif now >= deadline:
        end = 'wall'
      elif now >= look:
        look = now + _TICK
        end = 'memory' if _resident(process.pid) > limits.memory else 'exit'
  out, err = (bytes(data[: limits.output]) for data in printed.values())
  return end, out, err


def _children(pid: int) -> list[int]:
  """Processes that this one has started."""
  found = []
  for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    with contextlib.suppress(OSError):  # it ended while we looked
      found += [int(child) for child in path.read_text().split()]
  return found


def _resident(pid: int) -> int:
  """Bytes of memory of all that descends from a process."""
  total, todo = 0, _children(pid)
  while todo:
    child = todo.pop()
    todo += _children(child)
    with contextlib.suppress(OSError, IndexError):
      total += int(pathlib.Path(f'/proc/{child}/statm').read_text().split()[1])
  return total * resource.getpagesize()


def _kill(process: subprocess.Popen[bytes]) -> None:
  """Ends the jail by its first process, so that bwrap reaps it, and then bwrap."""
  deadline = time.monotonic() + _END_SECONDS
  while process.poll() is None and time.monotonic() < deadline:
    for pid in _children(process.pid):  # none yet, if bwrap has only just started
      with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        if pid in _children(process.pid):  # still: the number was not given to another meanwhile
          signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(_TICK)
  process.kill()
  process.wait()


def _line(text: bytes) -> str:
  """The last line of an error, short."""
  lines = text.decode(errors='replace').strip().splitlines() or ['no message']
  return lines[-1][:200]
