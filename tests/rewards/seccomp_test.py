"""The system calls that no program needs answer that they do not exist, seen from a C program."""

import errno
import os
import pathlib
import signal
import subprocess
import tempfile

import pytest

from r1jax.rewards import seccomp
from r1jax.rewards.sandbox import Bubblewrap, Limits

BOX = Bubblewrap()
LIMITS = Limits(wall=20.0)


@pytest.fixture(scope='module', autouse=True)
def usable(box):
  """Skips where there is no sandbox or no compiler."""
  if not os.path.exists('/usr/bin/gcc'):
    pytest.skip('no gcc')


def built(source):
  """Standard output of a C program in the sandbox, and its status."""
  script = f'gcc -w probe.c -o probe && ./probe {" ".join(map(repr, SYSCALLS))}; exit $?'
  result = BOX.run(('/bin/sh', '-c', script), {'probe.c': source.encode()}, b'', LIMITS)
  return result.stdout.decode(), result.status


# Each is made with arguments that would work, or that a kernel which has the call refuses only
# after having looked at them.
SYSCALLS = {
  'socket': 'AF_INET, SOCK_STREAM, 0',
  'socketpair': 'AF_TIPC, SOCK_DGRAM, 0, area',
  'ptrace': '0, 0, 0, 0',
  'process_vm_writev': 'getpid(), area, 0, area, 0, 0',
  'pidfd_open': 'getpid(), 0',
  'pidfd_getfd': '0, 0, 0',
  'kcmp': 'getpid(), getpid(), 0, 0, 0',
  'unshare': 'CLONE_NEWUSER',
  'setns': '0, 0',
  'clone': 'CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0',
  'clone3': 'area, 64',
  'mount': '"none", "/tmp", "tmpfs", 0, 0',
  'umount2': '"/tmp", MNT_DETACH',
  'pivot_root': '"/tmp", "/tmp"',
  'chroot': '"/tmp"',
  'open_tree': 'AT_FDCWD, "/tmp", 1',
  'fsopen': '"tmpfs", 0',
  'add_key': '"user", "r1jax", "x", 1, -2',
  'keyctl': '0, -3, 0',
  'request_key': '"user", "r1jax", 0, 0',
  'io_uring_setup': '1, area',
  'bpf': '0, area, 64',
  'perf_event_open': 'area, 0, -1, -1, 0',
  'userfaultfd': '1',
  'memfd_create': '"x", 0',
  'shmget': '0, 4096, 0600',
  'msgget': '0, 0600',
  'mq_open': '"/x", O_CREAT | O_RDWR, 0600, 0',
  'inotify_init1': '0',
  'fanotify_init': '0, 0',
  'open_by_handle_at': 'AT_FDCWD, area, 0',
  'setuid': 'getuid()',
  'setgroups': '0, area',
  'capset': 'area, area',
  'prctl': '4, 1, 0, 0, 0',
  'personality': '0xffffffff',
  'seccomp': '2, 0, area',
  'sched_setscheduler': '0, 0, area',
  'setpriority': '0, 0, 0',
  'ioprio_set': '1, 0, 0',
  'clock_settime': '0, area',
  'settimeofday': '0, area',
  'adjtimex': 'area',
  'sethostname': '"x", 1',
  'syslog': '10, 0, 0',
  'init_module': 'area, 0, ""',
  'kexec_load': '0, 0, 0, 0',
  'reboot': '0, 0, 0, 0',
  'swapon': '"/tmp/x", 0',
  'acct': '0',
  'vhangup': '',
  'migrate_pages': '0, 0, 0, 0',
  'mlock': 'area, 4096',
  'ioctl': '0, TIOCSTI, "x"',
  'ioctl: alias': '0, 1L << 32 | TIOCSTI, "x"',
  'ioctl: TIOCLINUX': '0, 0x541C, area',
}
HARMFUL = ('reboot', 'kexec_load', 'swapon', 'vhangup', 'clone', 'settimeofday', 'clock_settime')


def probe():
  """C that makes each call and prints its name and 0 or the error's number."""
  body = ''
  for name, arguments in SYSCALLS.items():
    number = name.partition(':')[0]
    given = ', '.join(filter(None, [f'SYS_{number}', arguments]))
    body += f'#ifdef SYS_{number}\n  if (wanted(c, v, "{name}")) {{\n    errno = 0;\n'
    body += f'    long got = syscall({given});\n'
    if number == 'clone':
      body += '    if (got == 0) _exit(0);\n'
    body += f'    printf("{name}=%d\\n", got < 0 ? errno : 0);\n    fflush(stdout);\n  }}\n#endif\n'
  heads = 'errno fcntl sched signal stdio string unistd sys/ioctl sys/mount sys/socket sys/syscall'
  return (
    '#define _GNU_SOURCE\n' + ''.join(f'#include <{head}.h>\n' for head in heads.split())
    + 'static long area[512];\n'
    'static int wanted(int c, char **v, const char *name) {\n'
    '  for (int i = 1; i < c; i++) if (!strcmp(v[i], name)) return 1;\n  return 0;\n}\n'
    f'int main(int c, char **v) {{\n{body}}}\n'
  )  # fmt: skip


def answers(output):
  """Name -> error number, 0 for a call that worked."""
  return {n: int(e) for n, _, e in (line.rpartition('=') for line in output.splitlines())}


@pytest.fixture(scope='module')
def calls(usable):
  """What the calls answer in the sandbox, and those that do no harm outside of it."""
  inside, _ = built(probe())
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    (pathlib.Path(folder) / 'probe.c').write_text(probe())
    subprocess.run(['gcc', '-w', 'probe.c', '-o', 'probe'], cwd=folder, check=True)
    command = ['./probe', *(n for n in SYSCALLS if n not in HARMFUL)]
    user = {'user': 64_912, 'group': 64_912, 'extra_groups': []} if os.geteuid() == 0 else {}
    control = subprocess.run(command, cwd=folder, capture_output=True, text=True, **user)
  return answers(inside), answers(control.stdout)


@pytest.mark.parametrize('name', SYSCALLS)
def test_a_system_call_that_no_program_needs_does_not_exist(name, calls):
  inside, _ = calls
  if name not in inside:
    pytest.skip('not a call of this architecture')
  assert inside[name] == errno.ENOSYS


def test_outside_those_calls_exist(calls):
  _, outside = calls
  work = [name for name, error in outside.items() if error == 0]
  exist = [name for name, error in outside.items() if error != errno.ENOSYS]
  assert len(work) >= 8 and len(exist) >= 30, outside


@pytest.mark.skipif(os.uname().machine != 'x86_64', reason='it has no other architecture')
def test_the_calls_of_another_architecture_kill():
  call = 'int n = 20; __asm__("int $0x80" : "+a"(n)); printf("%d", n);'
  assert built(f'#include <stdio.h>\nint main() {{ {call} }}') == ('', 128 + signal.SIGSYS)


def test_the_list_names_calls_that_this_machine_knows():
  sc = pytest.importorskip('pyseccomp')
  known = [n for n in seccomp.ALLOWED if sc.resolve_syscall(sc.Arch.NATIVE, n) >= 0]
  assert len(known) > 0.8 * len(seccomp.ALLOWED) and len(set(known)) == len(known)
  assert not set(seccomp.ALLOWED) & {name.partition(':')[0] for name in SYSCALLS}
  assert len(seccomp.program()) % 8 == 0  # whole instructions
