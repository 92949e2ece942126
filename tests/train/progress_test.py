"""Progress as text, with a clock in hand."""

import io
import math

import pytest

from r1jax.train.progress import Megabytes, Progress, duration, line, number


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0, '0.0 s'),
    (6.24, '6.2 s'),
    (9.96, '10s'),
    (42.4, '42s'),
    (59.6, '1m00s'),
    (82, '1m22s'),
    (3599.7, '1h00m'),
    (7500, '2h05m'),
    (273600, '3d04h'),
  ],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


@pytest.mark.parametrize(
  ('x', 'text'),
  [
    (0, '0'),
    (0.0, '0.00'),
    (0.62, '0.62'),
    (-0.62, '-0.62'),
    (0.0312, '0.031'),
    (1.5e-4, '1.5e-04'),
    (1.234, '1.23'),
    (9.996, '10.0'),
    (21.3, '21.3'),
    (99.96, '100'),
    (512, '512'),
    (999.9, '1.0k'),
    (8123.0, '8.1k'),
    (2.4e6, '2.4M'),
    (math.nan, 'nan'),
    (-math.inf, '-inf'),
  ],
)
def test_number(x, text):
  assert number(x) == text


def test_line():
  values = {'tokens_per_s': 8123.0, 'reward': 0.62, 'length': 21.3}
  assert line('grpo', 37, 90, 82.0, values) == (
    'grpo  37/90  41%  eta 1m22s  8.1k tok/s  reward 0.62  length 21.3'
  )
  assert line('sft', 0, 10, None, {}) == 'sft  0/10  0%'
  assert line('sft', 10, 10, 0.0, {}) == 'sft  10/10  100%'


def test_eta_leaves_compilation_out():
  clock = Clock()
  progress = Progress('sft', 10, io.StringIO(), clock)
  assert progress.eta() is None
  with progress.compiling('train step'):
    clock.now += 60
  clock.now += 2
  progress.update(1)
  assert progress.eta() == 18.0
  clock.now += 4
  progress.update(2)
  assert progress.eta() == 24.0
  for step in range(3, 11):
    clock.now += 1
    progress.update(step)
  assert progress.eta() == 0.0


def test_eta_follows_the_latest_steps_and_resumes():
  clock = Clock()
  progress = Progress('sft', 200, io.StringIO(), clock, start=100)
  for step in range(101, 151):
    clock.now += 9 if step < 120 else 1
    progress.update(step)
  assert progress.eta() == 50.0


def test_log_gets_a_line_now_and_then():
  clock, stream = Clock(), io.StringIO()
  with Progress('sft', 100, stream, clock, every_s=10) as progress:
    for step in range(1, 24):
      clock.now += 1
      progress.update(step, loss=1.0)
  steps = [text.split()[1] for text in stream.getvalue().splitlines()]
  assert steps == ['1/100', '11/100', '21/100', '23/100']
  assert '\r' not in stream.getvalue() and '\x1b' not in stream.getvalue()


def test_log_has_the_last_step_once():
  clock, stream = Clock(), io.StringIO()
  with Progress('sft', 2, stream, clock) as progress:
    progress.update(1)
    progress.update(2)
  assert [text.split()[1] for text in stream.getvalue().splitlines()] == ['1/2', '2/2']


def test_log_of_compiling():
  clock, stream = Clock(), io.StringIO()
  with Progress('grpo', 2, stream, clock) as progress, progress.compiling('train step'):
    clock.now += 6.2
  assert stream.getvalue() == 'grpo  compiling train step …\ngrpo  compiled train step in 6.2 s\n'


def test_a_compilation_that_fails_is_not_said_to_be_done():
  stream = io.StringIO()
  with (
    pytest.raises(KeyError),
    Progress('grpo', 2, stream, Clock()) as progress,
    progress.compiling('train step'),
  ):
    raise KeyError
  assert stream.getvalue() == 'grpo  compiling train step …\n'


def test_terminal_rewrites_one_line(monkeypatch):
  monkeypatch.setenv('COLUMNS', '20')
  clock, stream = Clock(), Terminal()
  with Progress('sft', 3, stream, clock) as progress:
    progress.update(1, a_long_name_that_does_not_fit=1.0)
    with progress.compiling('step'):
      clock.now += 1
    progress.update(2)
  assert stream.getvalue() == (
    '\rsft  1/3  33%  eta \x1b[K\n'
    'sft  compiling step …\r\x1b[Ksft  compiled step in 1.0 s\n'
    '\rsft  2/3  66%  eta \x1b[K\n'
  )


def test_megabytes_with_rate_a_line_for_each_name():
  clock, out = Clock(), io.StringIO()
  with Megabytes(out, clock) as told:
    told(('written', 10_000_000, 30_000_000))
    clock.now += 2
    told(('written', 30_000_000, 30_000_000))
    told(('verified', 0, 30_000_000))
  assert out.getvalue().splitlines() == [
    'written  10/30  33%  mb_per_s 0.00',
    'written  30/30  100%  mb_per_s 10.0',
    'verified  0/30  0%  mb_per_s 0.00',
  ]


def test_megabytes_without_a_stream_is_silent():
  with Megabytes(None) as told:
    told(('written', 1, 2))
