"""Signals: heard at once, heeded at safe points, saved within the deadline."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = r"""
import sys, time
from r1jax.train.stop import Stop
mode = sys.argv[1]
# One write a line: two threads print.
with Stop(0.3, lambda text: print(text + '\n', end='', flush=True)) as stop:
  print('ready', flush=True)
  if mode == 'steps':
    while not stop.now():
      time.sleep(0.01)
    print(f'safe point, signal {stop.number}\n', end='', flush=True)
  elif mode == 'rollout':
    with stop.resting(lambda: 'saved from the thread'):
      time.sleep(60)
  elif mode == 'rested':
    with stop.resting(lambda: 'never'):
      pass
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
      sum(range(1000))
    print('number', stop.number, flush=True)
print('closed', flush=True)
"""


def started(mode):
  """A process that says 'ready' when it hears signals."""
  process = subprocess.Popen(
    [sys.executable, '-c', SCRIPT, mode],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n', process.stderr.read()
  return process


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_at_the_next_safe_point(number):
  process = started('steps')
  process.send_signal(number)
  out, errors = process.communicate(timeout=30)
  assert {f'safe point, signal {int(number)}', 'closed'} <= set(out.splitlines())
  assert (process.returncode, errors) == (0, '')


def test_past_the_deadline_what_lies_still_is_saved_from_a_thread():
  process, begin = started('rollout'), time.monotonic()
  process.send_signal(signal.SIGTERM)
  out, errors = process.communicate(timeout=30)
  assert (process.returncode, errors) == (143, '')
  assert out.splitlines() == ['SIGTERM: saving at the next safe point', 'saved from the thread']
  assert 0.3 <= time.monotonic() - begin < 20


def test_past_the_deadline_between_safe_points_it_waits_on():
  """A step is under way: its state is donated and may not be read."""
  process = started('rested')
  process.send_signal(signal.SIGTERM)
  out, errors = process.communicate(timeout=30)
  assert 'SIGTERM: still on the way to a safe point after 0.3 s' in out.splitlines()
  assert out.splitlines()[-2:] == ['number 15', 'closed'] and (process.returncode, errors) == (
    0,
    '',
  )


def test_a_second_interrupt_does_not_wait():
  process = started('rollout')
  process.send_signal(signal.SIGINT)
  time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=30)
  assert process.returncode in (1, 130, -signal.SIGINT) and 'KeyboardInterrupt' in errors
