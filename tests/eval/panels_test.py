"""Which panels are drawn from what, and that nothing that is lacking stops it."""

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from r1jax.core.interval import wilson
from r1jax.eval import curves, panels, report

SFT_ROWS = [{'stage': 'sft', 'step': i, 'loss': 3.0 / i, 'time/train': 1.0} for i in range(1, 30)]
OLD_KEYS = ('reward', 'length', 'kl', 'entropy', 'self_checks')
OLD_ROWS = [
  {'stage': 'grpo', 'step': i, 'time/rollout': 2.0, 'time/else': 1.0} | dict.fromkeys(OLD_KEYS, i)
  for i in range(1, 3)
]
NEW = {'accuracy': 0.5, 'wrong': 0.25, 'unparseable': 0.25, 'timeout': 0.0, 'length/wrong': 9.0}
NEW |= {'clip_fraction': 0.01, 'zero_variance': 0.3, 'sampled_difference': 1e-7}
NEW |= {'first_correct': 0.7, 'early_correct': 0.4, 'language/en': 0.9, 'language/zh': 0.1}
GRPO_ROWS = [row | NEW for row in OLD_ROWS]
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
JUDGE = {'name': 'after REWARD', 'stage': 'reward', 'preference_correct': 8, 'preference_count': 10}
BINS = {'calibration_bins': [[0, None, None], [8, 0.2, 0.25], [2, 0.9, 1.0]]}
SFT_TITLES = ['SFT loss', 'Held-out accuracy', 'Where the time goes']
OLD_TITLES = [
  'SFT loss',
  'Reward',
  'Held-out accuracy',
  'Completion length',
  'KL to the reference',
  'Entropy',
  'Self-checks',
  'Where the time goes',
]
NEW_TITLES = [
  'Reward',
  'Outcomes',
  'Completion length',
  'KL to the reference',
  'Entropy',
  'Clipped tokens',
  'Groups of equal rewards',
  'Trainer against sampler',
  'Self-checks',
  'Gold answer first written',
  'Languages',
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


def rows(stage, **figures):
  """Three steps of constant figures."""
  return [{'stage': stage, 'step': i, **figures} for i in range(1, 4)]


@pytest.mark.parametrize(
  ('rows', 'evaluations', 'titles'),
  [
    (SFT_ROWS + OLD_ROWS, EVALUATIONS, OLD_TITLES),
    (GRPO_ROWS, [], NEW_TITLES),
    (SFT_ROWS, EVALUATIONS[:1], SFT_TITLES),
    ([], EVALUATIONS, ['Held-out accuracy']),
    ([{'stage': 'grpo', 'step': 1, 'reward': None, 'kl': -0.1}], [], ['KL to the reference']),
    ([], [{'name': 'a', 'stage': 'sft'}], []),
    ([], [JUDGE | BINS], ['Held-out preferences', 'Calibration, after REWARD']),
    ([], [{'name': 'a', 'stage': 'b', 'calibration_bins': [[0, None, None]]}], []),
    (
      rows('dpo', loss=0.6, accuracy=0.7, margin=0.1),
      [],
      ['DPO loss', 'Preference accuracy', 'Preference margin'],
    ),
    (rows('judge', accuracy=0.7, solved=0.2), [], ['Label accuracy']),
    (
      rows('distill', divergence=0.6, agreement=0.7),
      [],
      ['Divergence from the teacher', 'Agreement with the teacher'],
    ),
    (
      rows('distill', **{'layer2/unexplained': 0.5, 'layer2/error': 3.0}),
      [],
      ["The teacher's layers"],
    ),
    (
      rows('ppo', reward=0.1, value_loss=0.6, explained_variance=-0.7, accuracy=None),
      [],
      ['Reward', 'Value loss', 'Explained variance of returns'],
    ),
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
  assert labels['Outcomes'] == ('GRPO step', 'share of the answers')
  assert labels['Where the time goes'][0] == 'share of the stage'
  assert all(y for title, (_, y) in labels.items() if title != 'Where the time goes')


def test_lengths_are_apart_where_they_were_measured(tmp_path, drawn):
  for found in (GRPO_ROWS, OLD_ROWS):
    report.draw(found, [], tmp_path / 'a.png')
  at = lambda f: next(a for a in f.axes if a.get_title(loc='left') == 'Completion length')
  apart, alone = map(at, drawn)
  assert apart.get_legend_handles_labels()[1] == ['all', 'wrong'] and alone.get_legend() is None


def test_one_language_is_no_mix_and_rare_ones_are_the_rest():
  row = {'stage': 'grpo', 'step': 1}
  assert panels.languages([row | {'language/en': 1.0, 'language/zh': 0.0}], 'grpo') is None
  axes = Figure().add_subplot()
  shares = {f'language/{c}': x for c, x in zip('abcdefghi', (30, 20, 15, 10, 9, 8, 4, 3, 1))}
  panels.languages([row | {k: x / 100 for k, x in shares.items()}], 'grpo')(axes)
  assert axes.get_legend_handles_labels()[1] == [*'abcdefg', 'rest']
  tops = [float(p.get_data().values[0]) for p in axes.patches]
  assert tops[-2:] == pytest.approx([0.96, 1.0])


def test_a_step_wholly_in_another_language_is_drawn():
  """Shares of 0 are not in the rows; a step without words has no share at all."""
  shares = ({'language/en': 1.0}, {'language/zh': 1.0}, {}, {'language/en': 1.0})
  rows = [{'stage': 'grpo', 'step': i, **share} for i, share in enumerate(shares)]
  axes = Figure().add_subplot()
  panels.languages(rows, 'grpo')(axes)
  english, chinese = (p.get_data().values.tolist() for p in axes.patches)
  assert (english, chinese) == ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0])


def test_layers_are_in_their_order():
  found = rows('distill', **{f'layer{i}/unexplained': 0.5 for i in (10, 9)})
  axes = Figure().add_subplot()
  (panel,) = panels.panels(found, [])
  panel(axes)
  assert axes.get_legend_handles_labels()[1] == ['layer 9', 'layer 10']


def test_clipping_is_drawn_where_there_was_any():
  rows = [row | {'clip_fraction': 0.0} for row in GRPO_ROWS]
  axes = Figure().add_subplot()
  for panel in panels.panels(rows, []):
    panel(axes)
    assert axes.get_title(loc='left') != 'Clipped tokens'


def test_calibration_shows_the_bins_with_examples():
  axes = Figure().add_subplot()
  panels.calibration(JUDGE | BINS | {'calibration_error': 0.06})(axes)
  (dots,) = axes.collections
  assert dots.get_offsets().tolist() == [[0.2, 0.25], [0.9, 1.0]]
  assert axes.lines[1].get_ydata() == pytest.approx(wilson(2, 8))
  assert 'expected error 6.0 %' in [t.get_text() for t in axes.texts]


def test_a_stage_keeps_its_colour_in_bars_and_curves(tmp_path, drawn):
  found = rows('dpo', margin=0.1) + rows('reward', margin=0.2)
  report.draw(found, [JUDGE], tmp_path / 'a.png')
  curve, bar = drawn[0].axes[1], drawn[0].axes[2]
  assert curve.get_xlabel() == 'REWARD step'
  assert bar.patches[0].get_facecolor()[:3] == pytest.approx(to_rgb(curve.lines[0].get_color()))
