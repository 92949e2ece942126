"""The system calls that a program in the sandbox may make; all others answer ENOSYS.

A list of what is allowed, so that calls which a newer kernel brings are refused unseen. It holds
what CPython, gcc, g++ and what they build need: files, memory, processes, signals, clocks, waiting,
pipes and socket pairs. Not on it, among others: sockets, name spaces, mounts, ptrace and its kin,
keyrings, io_uring, bpf, perf events, userfaultfd, System V memory and memfd (memory that no limit
of a process counts), modules, clocks to set. ENOSYS rather than EPERM, since the C library then
falls back to older calls (clone3 → clone). A call under another architecture's numbers kills.

Four are allowed by their arguments: clone without a new name space, ioctl that asks about a
descriptor, socketpair of AF_UNIX, sendto without an address.
Source: seccomp(2), libseccomp through pyseccomp. Cost: 0.1 s once a process, for `ctypes` to find
the library.
"""

import errno
import os
import socket

_FILES = (
  'access chdir chmod close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 '
  'fadvise64 fallocate fchdir fchmod fchmodat fcntl fdatasync flock fstat fstatfs fsync ftruncate '
  'futimesat getcwd getdents getdents64 link linkat lseek lstat mkdir mkdirat newfstatat open '
  'openat pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readlink readlinkat '
  'readv rename renameat renameat2 rmdir sendfile stat statfs statx symlink symlinkat truncate '
  'umask unlink unlinkat utime utimensat utimes write writev'
)
_MEMORY = 'brk madvise membarrier mincore mmap mprotect mremap msync munmap'
_PROCESSES = (
  'arch_prctl execve exit exit_group fork futex get_robust_list getcpu getegid geteuid getgid '
  'getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage '
  'getsid gettid getuid kill prlimit64 rseq sched_getaffinity sched_yield set_robust_list '
  'set_tid_address setpgid setrlimit setsid sysinfo tgkill times tkill uname vfork wait4 waitid'
)
_SIGNALS = (
  'alarm getitimer pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn '
  'rt_sigsuspend rt_sigtimedwait setitimer sigaltstack'
)
_CLOCKS = 'clock_getres clock_gettime clock_nanosleep getrandom gettimeofday nanosleep time'
_WAITING = (
  'epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd eventfd2 getsockopt poll '
  'ppoll pselect6 recvfrom select shutdown'
)
ALLOWED = tuple(' '.join((_FILES, _MEMORY, _PROCESSES, _SIGNALS, _CLOCKS, _WAITING)).split())

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW_NAMESPACES = 0x7E02_0000
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def program() -> bytes:
  """The filter as bubblewrap's --seccomp reads it, for the machine's own architecture.

  Raises ImportError, OSError or RuntimeError where pyseccomp or libseccomp is missing.
  """
  import pyseccomp as sc  # not on macOS, and slow to import

  table = sc.SyscallFilter(sc.ERRNO(errno.ENOSYS))
  rules = [(name, ()) for name in ALLOWED]
  rules += [('clone', (sc.Arg(0, sc.MASKED_EQ, _NEW_NAMESPACES, 0),))]
  # 64 bits are compared, while the kernel reads 32: equality lets no alias of a request through.
  rules += [('ioctl', (sc.Arg(1, sc.EQ, request),)) for request in _IOCTLS]
  rules += [('socketpair', (sc.Arg(0, sc.EQ, socket.AF_UNIX.value),))]
  rules += [('sendto', (sc.Arg(4, sc.EQ, 0),))]
  for name, arguments in rules:
    number = sc.resolve_syscall(sc.Arch.NATIVE, name)
    if number >= 0:  # negative: not a call of this architecture, such as open on arm
      table.add_rule(sc.ALLOW, number, *arguments)
  with open(os.memfd_create('seccomp'), 'w+b') as file:
    table.export_bpf(file)
    file.seek(0)
    return file.read()
