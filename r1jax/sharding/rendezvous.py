"""All processes meet before jax hears of them, so that whoever is missing is named in one line.

jax.distributed ends a process by abort, with a stack trace, when another one does not come in time
or counts differently. So process 0 first listens at the coordinator's port with a plain socket;
each other process connects and says 'r1jax 2 of 4'. When all are there, or something is wrong,
process 0 tells them all the same and frees the port. Cost: one connection a process, once.
"""

import contextlib
import os
import re
import socket
import time

from r1jax.core.errors import UserError

HELLO = re.compile(rb'r1jax (\d+) of (\d+)\n')
GO = 'go'
LONGEST = 1000


def meet(host: str, port: int, count: int, index: int, seconds: float) -> None:
  """Returns when all `count` processes are here; else all that are raise the same UserError."""
  if index == 0:
    wrong = _host(port, count, seconds)
  else:
    wrong = _visit(host, port, count, index, seconds)
  if wrong:
    raise UserError(wrong)


def _host(port: int, count: int, seconds: float) -> str:
  """Process 0: waits for the others and tells them what is wrong, '' if nothing is."""
  until, callers, came, wrong = time.monotonic() + seconds, [], set(), ''
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(port))
    while len(came) < count - 1 and not wrong:
      server.settimeout(max(until - time.monotonic(), 0.01))
      try:
        callers.append(stack.enter_context(server.accept()[0]))
      except TimeoutError:
        wrong = _missing(count, came, seconds)
        break
      hello = _hello(callers[-1])
      if hello is None:
        callers.pop()
        continue
      wrong = _mistake(*hello, count, came)
      came.add(hello[0])
    for caller in callers:
      with contextlib.suppress(OSError):  # one that has gone meanwhile
        caller.sendall((wrong or GO).encode())
  return wrong


def _listen(port: int) -> socket.socket:
  """A server at the port of all interfaces, IPv6 too where there is any."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(('', port), family=family, dualstack_ipv6=both)
  except OSError as error:
    raise UserError(
      f'process 0 cannot listen at port {port} ({os.strerror(error.errno)}): give all processes '
      'another port of its machine as coordinator'
    ) from None


def _hello(caller: socket.socket) -> tuple[int, int] | None:
  """(index, count) that a caller says; None from one that is no process of ours."""
  caller.settimeout(2)
  try:
    found = HELLO.fullmatch(caller.makefile('rb').readline(LONGEST))
  except OSError:
    return None
  return None if found is None else (int(found[1]), int(found[2]))


def _missing(count: int, came: set[int], seconds: float) -> str:
  """The line for those that did not come."""
  absent = ', '.join(str(i) for i in range(1, count) if i not in came)
  return (
    f'of {count} processes these did not come within {seconds:g} s: {absent}; start all of them, '
    'with the same coordinator'
  )


def _mistake(index: int, theirs: int, count: int, came: set[int]) -> str:
  """The line for a process that does not fit to the others, '' if it does."""
  if theirs != count:
    return (
      f'process {index} was started as one of {theirs}, process 0 as one of {count}: '
      'give all the same number of processes'
    )
  if index in came:
    return f'two processes were started as process {index} of {count}: number them from 0'
  return ''


def _visit(host: str, port: int, count: int, index: int, seconds: float) -> str:
  """Another process: what process 0 says is wrong, '' if nothing is."""
  where = f'{host}:{port}'
  with _reach(host, port, index, seconds) as line:
    line.settimeout(seconds + 5)  # process 0 may have come just now, and waits as long
    try:
      line.sendall(f'r1jax {index} of {count}\n'.encode())
      answer = line.makefile('rb').read(LONGEST).decode(errors='replace')
    except OSError:
      answer = ''
  if answer == GO:
    return ''
  if answer and answer.isprintable():
    return answer
  return (
    f'what listens at {where} is not process 0 of this run, or it ended: '
    'start all processes anew, with a free port of its machine as coordinator'
  )


def _reach(host: str, port: int, index: int, seconds: float) -> socket.socket:
  """A connection to process 0, tried until the time is over."""
  until = time.monotonic() + seconds
  while True:
    try:
      return socket.create_connection((host, port), timeout=max(until - time.monotonic(), 0.01))
    except OSError as error:
      if time.monotonic() >= until:
        raise UserError(
          f'process {index} cannot reach the coordinator {host}:{port} within {seconds:g} s '
          f'({error}): start process 0 there, or give the host and port where it is'
        ) from None
    time.sleep(min(0.1, seconds))
