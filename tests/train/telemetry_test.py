"""Metrics survive resuming and killing; timers split time without counting any of it twice."""

import json
import threading

import numpy as np
import pytest

from r1jax.train.telemetry import Timers, Writer, read


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_rows(tmp_path):
  clock = Clock()
  with Writer(tmp_path / 'run', clock=clock) as writer:
    writer.write(1, 'sft', {'loss': np.float32(0.5), 'accuracy': float('nan')})
    clock.now = 101.23456
    writer.write(np.int64(2), 'sft', {'loss': 3})
    writer.flush()
    assert read(tmp_path / 'run') == [
      {'stage': 'sft', 'step': 1, 'time': 100.0, 'loss': 0.5, 'accuracy': None},
      {'stage': 'sft', 'step': 2, 'time': 101.235, 'loss': 3.0},
    ]
  for text in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines():
    json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_tensorboard_files_are_written(tmp_path):
  for start in (0, 3):
    with Writer(tmp_path) as writer:
      for step in range(start, start + 3):
        writer.write(step, 'grpo', {'time/rollout': 1.0})
  events = list((tmp_path / 'tb').iterdir())
  assert events and any(b'grpo/time/rollout' in path.read_bytes() for path in events)


def test_resume_repeats_steps_once(tmp_path):
  with Writer(tmp_path, clock=Clock()) as writer:
    for step in (1, 2, 3):
      writer.write(step, 'sft', {'loss': float(step)})
  with Writer(tmp_path, clock=Clock()) as writer:
    writer.write(3, 'sft', {'loss': 30.0})
    writer.write(3, 'grpo', {'reward': 0.5})
    writer.write(3, 'grpo', {'kl': 0.1})
  rows = read(tmp_path)
  assert [(r['stage'], r['step']) for r in rows] == [
    *[('sft', s) for s in (1, 2, 3)],
    ('grpo', 3),
  ]
  assert [r.get('loss') for r in rows] == [1.0, 2.0, 30.0, None]
  assert rows[3]['reward'] == 0.5 and rows[3]['kl'] == 0.1


def test_a_torn_line_is_left_out_and_harms_no_other(tmp_path):
  with Writer(tmp_path, clock=Clock()) as writer:
    writer.write(1, 'sft', {'loss': 1.0})
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"stage": "sft", "step": 2, "lo')
  assert [r['step'] for r in read(tmp_path)] == [1]
  with Writer(tmp_path, clock=Clock()) as writer:
    writer.write(2, 'sft', {'loss': 2.0})
  assert [r['step'] for r in read(tmp_path)] == [1, 2]


def test_nothing_written_reads_empty(tmp_path):
  assert read(tmp_path / 'nowhere') == []


def test_names_of_the_row_are_refused(tmp_path):
  with Writer(tmp_path) as writer, pytest.raises(ValueError, match="'step'"):
    writer.write(1, 'sft', {'step': 2.0})


def test_timers_split_time():
  clock = Clock()
  timers = Timers(clock)
  with timers('rollout'):
    clock.now += 3
    with timers('compile'):
      clock.now += 5
    clock.now += 1
  clock.now += 100  # outside every timer
  with timers('train'):
    clock.now += 1
  assert timers.seconds() == {'rollout': 4.0, 'compile': 5.0, 'train': 1.0}
  assert timers.shares() == {'rollout': 0.4, 'compile': 0.5, 'train': 0.1}
  assert timers.take() == {'time/rollout': 4.0, 'time/compile': 5.0, 'time/train': 1.0}
  assert timers.seconds() == {} and timers.shares() == {}


def test_a_thread_s_times_are_its_own():
  """What passes in the background while a timer is open adds nothing to it, and the other way."""
  clock, found = Clock(), []
  timers = Timers(clock)

  def aside():
    with timers('rollout'):
      clock.now += 5
    found.append(timers.take())

  with timers('train'):
    clock.now += 1
    thread = threading.Thread(target=aside)
    thread.start()
    thread.join()
    clock.now += 1
  assert found == [{'time/rollout': 5.0}]
  assert timers.take() == {'time/train': 7.0}  # of the clock, which went on


def test_timers_count_what_fails():
  clock = Clock()
  timers = Timers(clock)
  with pytest.raises(KeyError), timers('reward'):
    clock.now += 2
    raise KeyError
  with timers('reward'):
    clock.now += 2
  assert timers.seconds() == {'reward': 4.0}
