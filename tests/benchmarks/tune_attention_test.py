"""The tuner keeps a rule unless it is beaten twice, and writes what the kernels read."""

import itertools
import runpy

import pytest

from r1jax.kernels import sizes
from r1jax.kernels.attention.lists import Band
from tests.benchmarks import tune_attention
from tests.benchmarks.tune_attention import Heads, Job, Stage, around, merged, tuned, winner

RULE, A, B = (8,), (16,), (32,)
SMALL = Heads(2, 1, 8, 8)


def told(**by_choice):
  """A timer that tells, for each choice, one figure after the other, and then the last again."""
  names = {'rule': RULE, 'a': A, 'b': B}
  turns = {names[k]: itertools.chain(v[:-1], itertools.repeat(v[-1])) for k, v in by_choice.items()}
  return lambda choice: next(turns[choice])


@pytest.mark.parametrize(
  'times, want',
  [
    ({'rule': [1.0], 'a': [0.9], 'b': [0.8]}, B),
    ({'rule': [1.0], 'a': [0.98], 'b': [1.2]}, RULE),  # within the margin
    ({'rule': [1.0], 'a': [1.1], 'b': [1.0]}, RULE),
    # Ahead in the first round of four turns only: the second decides, and the next best is tried.
    ({'rule': [1.0], 'a': [0.9], 'b': [0.5] * 4 + [1.0]}, A),
    ({'rule': [1.0], 'a': [0.5] * 4 + [0.99], 'b': [0.5] * 4 + [1.5]}, RULE),
    # One turn far off, the first above all, moves no median.
    ({'rule': [1.0], 'a': [9.0, 0.5, 9.0, 0.5, 9.0, 0.5], 'b': [0.1, 1.0]}, A),
    ({'rule': [9.0, 1.0], 'a': [0.1, 1.0], 'b': [1.0]}, RULE),
  ],
)
def test_a_rule_yields_to_what_beats_it_twice(times, want):
  assert winner(RULE, [A, B], told(**times), rounds=3) == want


def test_choices_take_turns():
  seen = []
  winner(RULE, [A, B], lambda x: seen.append(x) or 1.0, rounds=2)
  assert seen == [RULE, A, B] * 3


def test_stages_build_on_each_other_and_what_fails_is_left_out(monkeypatch, capsys):
  def program(choice):
    if choice == (4, 2):
      raise ValueError('no room for 4')
    return lambda: choice

  cost = {(1, 1): 4, (2, 1): 3, (2, 2): 2, (2, 4): 1, (4, 1): 9}
  by_cost = lambda programs: lambda choice: cost[programs[choice]()]
  monkeypatch.setattr(tune_attention, 'seconds_of', by_cost)
  first = Stage(lambda x: [(2, 1), (4, 1)], program)
  second = Stage(lambda x: [(4, 2), (x[0], 2), (x[0], 4)], program)
  assert tuned(Job('op', (1, 1), (first, second)), rounds=1) == (2, 4)
  assert '(4, 2) left out: no room for 4' in capsys.readouterr().out


def test_candidates_lie_around_the_rule():
  assert set(around((16, 32, 8), slice(0, 2), least=16)) == {
    (q, k, 8) for q in (16, 32, 64) for k in (16, 32, 64, 128)
  }


def test_what_is_written_is_what_the_kernels_look_up(tmp_path, monkeypatch):
  label = sizes.banded('xla', Band(0, 512), 4, 64, 4096)
  others = {'TPU v4': {label: (128,) * 6}, 'cpu': {'old': (1,), 'lost': (2,)}}
  monkeypatch.setattr(tune_attention, 'MEASURED', others)
  table = merged({label: (1024, 512) * 3, 'new': (64,)}, {'lost': (3,)}, 'cpu')
  path = tmp_path / 'measured.py'
  tune_attention.write(table, path)
  assert runpy.run_path(str(path))['MEASURED'] == {
    'TPU v4': {label: (128,) * 6},
    'cpu': {'old': (1,), 'new': (64,), label: (1024, 512) * 3},
  }
  tune_attention.write({}, path)
  assert runpy.run_path(str(path))['MEASURED'] == {}


def test_every_job_runs_with_its_rule_and_a_neighbour():
  jobs = [
    tune_attention.banded_job('xla', Band(), SMALL, 32, 'float32'),
    tune_attention.banded_job('xla', Band(16), SMALL, 32, 'float32'),
    tune_attention.selected_job(SMALL, 32, 'float32', 4, 2),
    *tune_attention.index_jobs(SMALL, 32, 'float32'),
  ]
  for job in jobs:
    for stage in job.stages:
      choice = next(x for x in stage.candidates(job.rule) if x != job.rule)
      assert stage.program(choice)() is not None, job.label
