"""Builds a program and runs it on tests, inside the sandbox: the text of this file is sent there.

`python -I -S -E inside.py`, started by `code.py`, the first process of its name space. On stdin
comes the repr of a dict:

    build: command that compiles      run: command        (both None: the Python file answer.py)
    stdin: a text for each run        calls: what one more run evaluates; for a command, which knows
    output: bytes a run may print     its calls itself, any that is not empty
    cpu: seconds of processor time a run may take; the compiler has the limits of the sandbox

On stdout go frames, `STATUS LENGTH\\n` and that many bytes: one for the build, one for each run, up
to the first whose status is not 0 (negative: the signal that ended it). The frame of calls has a
frame in it for each value. No expected value is ever here, so there is nothing to read, to forge or
to patch: whoever writes the right frames has computed the right answers.
"""

import builtins
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

# Where the values of calls go, away from what the program prints.
CHANNEL = 3


def main() -> Callable[[], None] | None:
  """Answers the request; in a child, returns what the child is to do, as a program's last act."""
  request = eval(sys.stdin.buffer.read())
  build, run, calls = request['build'], request['run'], request['calls']
  jobs = [('', 1, command(build) if build else compiled)]
  jobs += [(text, 1, command(run) if run else python) for text in request['stdin']]
  if calls:
    jobs.append(('', CHANNEL, command(run) if run else lambda: python(calls)))
  for i, (text, channel, job) in enumerate(jobs):
    child, out = forked(text, channel, (request['cpu'], request['output']) if i else None)
    if not child:
      return job
    status, data = ended(child, out)
    send(1, frame(status, data))
    if status:
      break
  return None


def frame(status: int, data: bytes) -> bytes:
  """A status and bytes, such that their end can be told."""
  return b'%d %d\n' % (status, len(data)) + data


def send(descriptor: int, data: bytes) -> None:
  """Writes all of it."""
  while data:
    data = data[os.write(descriptor, data) :]


def forked(text: str, channel: int, limits: tuple[int, int] | None) -> tuple[int, int]:
  """Process number of a new child (0 in it) and the file behind its descriptor `channel`."""
  # Files without a name: nothing that an earlier run left in the folder can stand in their place.
  stdin, out = (os.open('.', os.O_TMPFILE | os.O_RDWR) for _ in range(2))
  send(stdin, text.encode())
  os.lseek(stdin, 0, os.SEEK_SET)
  child = os.fork()
  if not child:
    null = os.open('/dev/null', os.O_RDWR)
    stdin, out, null = (os.dup2(d, d + 100, inheritable=False) for d in (stdin, out, null))
    for source, target in ((stdin, 0), (null, 1), (null, 2), (out, channel)):
      os.dup2(source, target)
    os.closerange(max(2, channel) + 1, 200)
    for limit, value in zip((resource.RLIMIT_CPU, resource.RLIMIT_FSIZE), limits or ()):
      _, most = resource.getrlimit(limit)
      least = [v if most == resource.RLIM_INFINITY else min(v, most) for v in (value, value + 1)]
      resource.setrlimit(limit, tuple(least))  # the signal that warns, and a second later death
  else:
    os.close(stdin)
  return child, out


def ended(child: int, out: int) -> tuple[int, bytes]:
  """Waits for a child and ends whatever else it started; its status and output."""
  _, status = os.waitpid(child, 0)
  try:
    os.kill(-1, signal.SIGKILL)
    while True:
      os.waitpid(-1, 0)
  except OSError:  # none is left
    data = os.pread(out, os.fstat(out).st_size, 0)
  os.close(out)
  return os.waitstatus_to_exitcode(status), data


def command(words: Sequence[str]) -> Callable[[], None]:
  """Becomes another program, with the signals that CPython ignores as they were."""

  def job() -> None:
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
      signal.signal(ignored, signal.SIG_DFL)
    try:
      os.execv(words[0], words)
    except FileNotFoundError:
      os._exit(127)  # as a shell does

  return job


def compiled() -> object:
  """The code of answer.py; a SyntaxError or its like ends the child."""
  with open('answer.py', 'rb') as file:
    return compile(file.read(), 'answer.py', 'exec')


def python(calls: Sequence[str] = ()) -> None:
  """Runs the answer as the main module, then the calls in it."""
  module = type(sys)('__main__')
  sys.modules['__main__'], sys.argv = module, ['answer.py']
  builtins.exit = builtins.quit = sys.exit  # -S leaves them out
  exec(compiled(), module.__dict__)
  for call in calls:
    send(CHANNEL, frame(0, repr(eval(call, module.__dict__)).encode(errors='backslashreplace')))


if __name__ == '__main__':
  work = main()
  if work:
    work()
