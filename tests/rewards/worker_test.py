"""The worker by itself: its protocol, and that it does not outlive its parent."""

import functools
import multiprocessing.connection
import socket
import subprocess
import sys
import time

from r1jax.rewards.outcome import Outcome
from r1jax.tasks.file import File
from r1jax.tasks.make import make
from r1jax.tasks.task import Example

TASK = """
import time
from r1jax.tasks.file import from_functions

def grade(example, answer):
  if answer == 'sleep':
    time.sleep(1e6)
  return answer == example.answer

def task():
  return from_functions('t', None, grade)
"""


def start(tmp_path, seconds):
  ours, theirs = socket.socketpair()
  command = [sys.executable, '-m', 'r1jax.rewards.worker', str(theirs.fileno())]
  process = subprocess.Popen([*command, str(seconds), str(4 << 30)], pass_fds=[theirs.fileno()])
  theirs.close()
  path = tmp_path / 'task.py'
  path.write_text(TASK)
  connection = multiprocessing.connection.Connection(ours.detach())
  connection.send(functools.partial(make, File(str(path))))
  assert connection.recv() is None
  return process, connection


def test_one_grade_for_each_item_then_ends_with_the_socket(tmp_path):
  process, connection = start(tmp_path, 5)
  text = '<think></think><answer>{}</answer>'
  connection.send([(Example('', '', 'x'), text.format(a)) for a in 'xyx'])
  assert [connection.recv().outcome for _ in range(3)] == [
    Outcome.CORRECT,
    Outcome.WRONG,
    Outcome.CORRECT,
  ]
  connection.close()
  assert process.wait(timeout=20) == 0


def test_contract_16_a_hanging_orphan_ends_by_itself(tmp_path):
  process, connection = start(tmp_path, 0.2)
  connection.send([(Example('', '', 'x'), '<think></think><answer>sleep</answer>')])
  connection.close()
  begin = time.monotonic()
  process.wait(timeout=20)
  assert time.monotonic() - begin < 10
