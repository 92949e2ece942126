"""The picture: which panels are drawn from what, and that nothing it lacks stops it."""

import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from r1jax.eval import curves, report

GRPO_KEYS = ('reward', 'length', 'kl', 'entropy', 'self_checks')
SFT_ROWS = [{'stage': 'sft', 'step': i, 'loss': 3.0 / i, 'time/train': 1.0} for i in range(1, 30)]
GRPO_ROWS = [
  {'stage': 'grpo', 'step': i, 'time/rollout': 2.0, 'time/else': 1.0} | dict.fromkeys(GRPO_KEYS, i)
  for i in range(1, 3)
]
EVALUATIONS = [
  {'name': 'after SFT', 'stage': 'sft', 'samples': 10, 'correct': 5, 'self_checks': 0.5},
  {
    'name': 'after GRPO',
    'stage': 'grpo',
    'samples': 10,
    'correct': 10,
    'greedy_accuracy': 1.0,
    'greedy_samples': 4,
  },
]
SFT_TITLES = ['SFT loss', 'Held-out accuracy', 'Where the time goes']
ALL_TITLES = [
  'SFT loss',
  'Reward',
  'Held-out accuracy',
  'Completion length',
  'KL to the reference',
  'Entropy',
  'Self-checks',
  'Where the time goes',
]


@pytest.fixture
def drawn(monkeypatch):
  """Every Figure that is made."""
  figures = []

  class Kept(Figure):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      figures.append(self)

  monkeypatch.setattr(curves, 'Figure', Kept)
  return figures


@pytest.mark.parametrize(
  ('rows', 'evaluations', 'titles'),
  [
    (SFT_ROWS + GRPO_ROWS, EVALUATIONS, ALL_TITLES),
    (SFT_ROWS, EVALUATIONS[:1], SFT_TITLES),
    ([], EVALUATIONS, ['Held-out accuracy']),
    ([{'stage': 'grpo', 'step': 1, 'reward': None, 'kl': -0.1}], [], ['KL to the reference']),
    ([], [{'name': 'a', 'stage': 'sft'}], []),
  ],
)
def test_panels_follow_the_data(tmp_path, drawn, rows, evaluations, titles):
  report.draw(rows, evaluations, tmp_path / 'a.png', 'quickstart · abc')
  (figure,) = drawn
  assert [axes.get_title(loc='left') for axes in figure.axes] == titles
  assert figure.get_suptitle() == 'quickstart · abc'
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_axes_have_units(tmp_path, drawn):
  report.draw(SFT_ROWS + GRPO_ROWS, EVALUATIONS, tmp_path / 'a.png')
  labels = {a.get_title(loc='left'): (a.get_xlabel(), a.get_ylabel()) for a in drawn[0].axes}
  assert labels['SFT loss'] == ('SFT step', 'nats per token')
  assert labels['Completion length'] == ('GRPO step', 'tokens')
  assert labels['Where the time goes'][0] == 'share of the stage'


def test_no_pyplot():
  code = 'import sys, r1jax.eval.report; sys.exit("matplotlib.pyplot" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_smooth():
  assert curves.smooth([], 5) == []
  assert curves.smooth([4.0, 2.0, 9.0], 1) == [4.0, 2.0, 9.0]
  assert curves.smooth([1.0, 2.0, 3.0, 4.0, 9.0], 3) == [1.0, 2.0, 3.0, 16 / 3, 6.5]
  assert curves.smooth([3.0] * 9, 7) == [3.0] * 9


def test_series_passes_over_what_is_absent():
  rows = [{'stage': 'sft', 'step': 1}, {'stage': 'sft', 'step': 2, 'loss': None}]
  rows += [{'stage': 'sft', 'step': 3, 'loss': 0.0}, {'stage': 'grpo', 'step': 1, 'loss': 1.0}]
  assert curves.series(rows, 'sft', 'loss') == ([3], [0.0])
  assert curves.stages(rows) == ['sft', 'grpo']
  assert curves.time_split([{'time/a': 1.0}, {'time/a': 2.0, 'time/b': None, 'time': 9}]) == {
    'a': 3
  }
