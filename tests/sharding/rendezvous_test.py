"""Processes, here threads, that come, do not come, or do not fit."""

import concurrent.futures
import socket
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.sharding import rendezvous


@pytest.fixture
def meet(free_port):
  """What each of the (index, count) that come gets to know: '' or an error."""
  port = free_port()

  def one(index, count, seconds):
    try:
      return rendezvous.meet('localhost', port, count, index, seconds) or ''
    except UserError as error:
      return str(error)

  def all_of(*who, seconds=20.0):
    with concurrent.futures.ThreadPoolExecutor(len(who)) as pool:
      return list(pool.map(lambda w: one(*w, seconds), who))

  all_of.port = port
  return all_of


def test_all_come_in_any_order_and_the_port_is_free_again(meet):
  assert meet((2, 3), (0, 3), (1, 3)) == ['', '', '']
  socket.create_server(('', meet.port)).close()
  assert meet((0, 1)) == ['']


def test_those_that_do_not_come_are_named_to_all(meet):
  said = (
    'of 4 processes these did not come within 1 s: 1, 3; '
    'start all of them, with the same coordinator'
  )
  assert meet((0, 4), (2, 4), seconds=1) == [said, said]


def test_another_number_of_processes(meet):
  said = (
    'process 1 was started as one of 3, process 0 as one of 2: '
    'give all the same number of processes'
  )
  assert meet((0, 2), (1, 3)) == [said, said]


def test_two_with_one_number(meet):
  said = 'two processes were started as process 1 of 3: number them from 0'
  assert meet((0, 3), (1, 3), (1, 3)) == [said, said, said]


def test_a_port_in_use(meet):
  with socket.create_server(('', meet.port)):
    assert meet((0, 2)) == [
      f'process 0 cannot listen at port {meet.port} (Address already in use): give all processes '
      'another port of its machine as coordinator'
    ]


@pytest.mark.parametrize('answer', [b'', b'\0\0\x18\4\0 HTTP/2'])
def test_another_program_at_the_port(meet, answer):
  """It hangs up, or speaks of something else."""
  with (
    socket.create_server(('', meet.port)) as server,
    concurrent.futures.ThreadPoolExecutor(1) as pool,
  ):
    told = pool.submit(meet, (1, 2))
    caller, _ = server.accept()
    assert caller.recv(100) == b'r1jax 1 of 2\n'
    caller.sendall(answer)
    caller.close()
    assert told.result() == [
      f'what listens at localhost:{meet.port} is not process 0 of this run, or it ended: '
      'start all processes anew, with a free port of its machine as coordinator'
    ]


def test_strangers_are_not_counted(meet):
  """A port scanner's visit does not end the wait for the others."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    host = pool.submit(meet, (0, 2))
    for words in (b'', b'GET / HTTP/1.1\r\n', b'r1jax one of two\n'):
      with visit(meet.port) as stranger:
        stranger.sendall(words)
    assert meet((1, 2)) == host.result() == ['']


def visit(port):
  """A connection, as soon as somebody listens."""
  for _ in range(200):
    try:
      return socket.create_connection(('localhost', port))
    except OSError:
      time.sleep(0.02)
  raise TimeoutError(port)


def test_nobody_there(meet):
  [said] = meet((1, 2), seconds=0.2)
  assert said.startswith(
    f'process 1 cannot reach the coordinator localhost:{meet.port} within 0.2 s ('
  )
  assert said.endswith('): start process 0 there, or give the host and port where it is')
