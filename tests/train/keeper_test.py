"""Between steps: what is written, when it is saved, and how it stops."""

import jax.numpy as jnp
import pytest

from r1jax.train import keeper as keepers
from r1jax.train.keeper import Keeper
from r1jax.train.point import Point
from r1jax.train.state import State
from r1jax.train.stop import Stop, Stopped
from r1jax.train.telemetry import Timers


class Notes(list):
  """Keeps calls by name: notes.save(3) adds ('save', 3)."""

  def __getattr__(self, name):
    return lambda *args, **kwargs: self.append((name, *args, *kwargs.items()))


@pytest.fixture
def run(experiment, bare, tmp_path):
  """A run that notes what it is told; a checkpoint every two steps."""
  run = bare(experiment)
  run.workdir, run.stop = tmp_path, Stop(1.0, print)
  run.timers = Timers(clock=iter(range(100)).__next__)
  run.writer, run.store, run.profiler = Notes(), Notes(), Notes()
  run.progress.stage, run.saves = 'sft', []
  run.save = lambda point, block=False: not run.saves.append((point.step, block))
  return run


def point(step):
  return Point(0, step, State(jnp.int32(step), None, None))


def test_a_step_is_written_with_its_times(run, monkeypatch):
  monkeypatch.setattr(keepers.perf, 'memory', lambda: {'memory/host_gb': 1.0})
  monkeypatch.setattr(keepers.perf, 'mfu', lambda flops, devices: flops)
  keep = Keeper(run, 3)
  for name in ('data', 'train', 'checkpoint'):
    with run.timers(name):  # each takes a second
      pass
  keep.done(point(1), {'loss': 2.0, 'tokens': 64, 'flops': 320})
  (row,) = run.writer
  assert row == ('write', 1, 'sft', {
    'loss': 2.0, 'tokens_per_s': 32.0, 'data_wait': 0.5, 'mfu': 160.0, 'memory/host_gb': 1.0,
    'time/data': 1, 'time/train': 1, 'time/checkpoint': 1,
  })  # fmt: skip
  with run.timers('evaluate'), run.timers('checkpoint'):
    pass
  keep.close(point(1))
  assert run.writer[1] == ('write', 1, 'sft', {'time/evaluate': 2, 'time/checkpoint': 2.0})


def test_it_saves_now_and_then_and_at_the_end(run):
  keep = Keeper(run, 5)
  for step in range(1, 6):
    keep.done(point(step), {'tokens': 1})
  assert run.saves == [(2, False), (4, False), (5, False)]
  assert run.profiler[:2] == [('after', 1), ('before', 2)]
  assert run.profiler[-2:] == [('after', 5), ('cut',)]
  assert run.store == [('poll',)] * 5


def test_it_stops_at_a_safe_point_when_asked_to(run):
  keep = Keeper(run, 5)
  keep.pause(point(0))
  run.stop.number = 15
  with pytest.raises(
    Stopped, match=r'stopped at sft step 1 of 5; .* the same command goes on'
  ) as e:
    keep.done(point(1), {'tokens': 1})
  assert e.value.code == 143 and run.saves == [(1, True)] and run.writer[-1][1] == 1
  with pytest.raises(Stopped):
    keep.pause(point(1))


def test_what_rests_can_be_saved_at_any_moment(run):
  keep = Keeper(run, 5)
  with keep.resting(point(3)):
    assert run.stop._resting().startswith('stopped at sft step 3 of 5')
  assert run.saves == [(3, True)] and run.stop._resting is None
