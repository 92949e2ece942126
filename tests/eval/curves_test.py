"""Series and how they are drawn: what is read off the axes of a panel is what was measured."""

import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from r1jax.eval import curves
from r1jax.eval.curves import BLACK, BLUE, GREEN, Level, Line, curve, draw, stacked

ROWS = [{'stage': 'grpo', 'step': i, 'x': i / 10, 'y': 1 - i / 10} for i in range(1, 4)]


@pytest.fixture
def axes():
  """Empty axes."""
  return Figure().add_subplot()


def test_curves_have_units_levels_and_names(axes):
  lines = [Line('x', 'up', BLUE), Line('y', 'down', BLACK), Line('none', 'absent')]
  curve(ROWS, 'grpo', lines, 'Both', '% share', Level(0.5), zero=True)(axes)
  assert axes.get_title(loc='left') == 'Both'
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('GRPO step', 'share')
  assert axes.yaxis.get_major_formatter()(0.25).endswith(' %') and axes.get_ylim()[0] == 0
  handles, names = axes.get_legend_handles_labels()
  assert names == ['up', 'down', 'after SFT']
  assert handles[0].get_xydata().tolist() == [[1, 0.1], [2, 0.2], [3, pytest.approx(0.3)]]
  assert [h.get_color() for h in handles] == [BLUE, BLACK, curves.STAGES['sft']]


def test_one_line_has_the_colour_of_its_stage_and_no_legend(axes):
  rows = [{'stage': s, 'step': 1, 'x': -1.0} for s in ('dpo', 'grpo', 'ppo')]
  curve(rows, 'ppo', [Line('x')], 'One', 'nats', zero=True)(axes)
  assert {line.get_color() for line in axes.lines} == {curves.OTHERS[1]}
  assert axes.get_legend() is None and axes.get_ylim()[0] < -1  # zero would hide what is below
  assert curve(rows, 'ppo', [Line('y')], 'One', 'nats') is None


def test_areas_lie_on_each_other_and_add_up(axes):
  """What a row lacks is 0, what all lack is no area; one step has a width."""
  lines = [Line('x', 'a', BLUE), Line('z', 'none', BLACK), Line('y', 'b', GREEN)]
  stacked(ROWS, 'grpo', lines, 'Parts', '% share')(axes)
  first, second = (patch.get_data() for patch in axes.patches)
  assert first.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
  assert first.values.tolist() == second.baseline.tolist() == pytest.approx([0.1, 0.2, 0.3])
  assert second.values.tolist() == pytest.approx([1.0] * 3)
  assert axes.get_legend_handles_labels()[1] == ['a', 'b']
  assert stacked(ROWS, 'sft', lines, 'Parts', '% share') is None
  assert stacked(ROWS[:1], 'grpo', lines, 'Parts', '% share') is not None


def test_a_sheet_without_panels_says_so(tmp_path):
  draw([], tmp_path / 'a.png')
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


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
