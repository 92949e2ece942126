"""A window opens once, closes whatever happens, and leaves a trace."""

import jax
import jax.numpy as jnp
import pytest

from r1jax.core.errors import UserError
from r1jax.train.profile import Profiler, Window, window


def run(profiler, steps):
  """The steps under a profiler."""
  for step in steps:
    profiler.before(step)
    yield step
    profiler.after(step)


@pytest.fixture
def calls(monkeypatch):
  """What reaches jax's profiler."""
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: calls.append(f'start {folder}'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def test_texts():
  assert window('100:3') == Window(100, 3)
  assert window(' 0:1 ') == Window(0, 1)


@pytest.mark.parametrize(
  'text', ['', '100', '100:', ':3', '100:0', '-1:3', '1:2:3', 'a:b', '1.5:2']
)
def test_bad_texts(text):
  with pytest.raises(UserError) as error:
    window(text)
  assert str(error.value) == (
    f"profile window: got '{text}', expected START:STEPS, such as 100:3 for steps 100, 101, 102"
  )


@pytest.mark.parametrize(
  'steps, traced',
  [
    (range(6), [2, 3, 4]),
    (range(3, 9), [3, 4]),  # resumed inside
    (range(5, 9), []),  # resumed behind
    (range(4), [2, 3]),  # the stage ends inside
    ([*range(6), *range(6)], [2, 3, 4]),  # the next stage counts from 0 again
  ],
)
def test_the_window(steps, traced, calls, tmp_path):
  seen = []
  with Profiler(Window(2, 3), tmp_path) as profiler:
    for step in run(profiler, steps):
      if len(calls) == 1:
        seen.append(step)
  assert seen == traced
  assert calls == ([f'start {tmp_path / "profile"}', 'stop'] if traced else [])


def test_an_exception_stops_the_trace_once(calls, tmp_path):
  with pytest.raises(KeyError), Profiler(Window(0, 5), tmp_path) as profiler:
    for step in run(profiler, range(5)):
      if step == 1:
        raise KeyError
  assert calls[1:] == ['stop']


def test_without_a_window_nothing_is_traced(calls, tmp_path):
  with Profiler(None, tmp_path) as profiler:
    list(run(profiler, range(3)))
  assert calls == []


def test_two_steps_leave_a_trace(tmp_path):
  step = jax.jit(lambda x: x + 1)
  x = step(jnp.zeros(3)).block_until_ready()
  with Profiler(Window(1, 2), tmp_path) as profiler:
    for _ in run(profiler, range(4)):
      x = step(x).block_until_ready()
    traces = list(profiler.folder.rglob('*.xplane.pb'))
  assert len(traces) == 1 and traces[0].stat().st_size > 0
