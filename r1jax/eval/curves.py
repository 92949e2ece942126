"""report.png: metrics as series over the steps, curves and areas of them, and their sheet.

Which panels there are, panels.py says. Drawn on matplotlib's Figure and Agg canvas, without pyplot:
no global state, no display. Colours are Okabe and Ito's, which the colour-blind tell apart; each
stage keeps its own in every panel that shows one line.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Row = Mapping[str, Any]
Panel = Callable[[Axes], None]

BLACK, ORANGE, SKY, GREEN = '#000000', '#E69F00', '#56B4E9', '#009E73'
BLUE, VERMILLION, PURPLE, GREY = '#0072B2', '#D55E00', '#CC79A7', '#8A8A8A'
STAGES = {'pretrain': GREEN, 'sft': BLUE, 'grpo': VERMILLION}
OTHERS = (PURPLE, ORANGE, SKY, BLACK)
COLUMNS = 3


class Line(NamedTuple):
  """One metric of a panel; the stage's colour where it has none of its own."""

  key: str
  label: str = ''
  colour: str = ''


class Level(NamedTuple):
  """A dashed line to compare with; none is drawn without a height."""

  height: float | None = None
  label: str = 'after SFT'


def draw(panels: Sequence[Panel], path: str | pathlib.Path, title: str = '') -> None:
  """Draws the panels, three beside each other, into a PNG."""
  columns = min(COLUMNS, max(len(panels), 1))
  lines = max(math.ceil(len(panels) / columns), 1)
  figure = Figure(figsize=(4.6 * columns, 3.3 * lines + 0.5), dpi=110, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
  figure.suptitle(title or 'r1jax', fontsize=13, fontweight='bold')
  if not panels:
    figure.text(0.5, 0.5, 'nothing was measured', ha='center', color=GREY)
  for i, panel in enumerate(panels):
    axes = figure.add_subplot(lines, columns, i + 1)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#E4E4E4', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    panel(axes)
  FigureCanvasAgg(figure).print_png(str(path))


def stages(rows: Sequence[Row]) -> list[str]:
  """The stages of a run in order of first appearance."""
  return list(dict.fromkeys(row['stage'] for row in rows))


def rollouts(rows: Sequence[Row]) -> list[str]:
  """The stages of reinforcement learning: those whose rows have a reward."""
  return [s for s in stages(rows) if any('reward' in r for r in rows if r['stage'] == s)]


def series(rows: Sequence[Row], stage: str, key: str) -> tuple[list[int], list[float]]:
  """(steps, values) of one metric; rows without it, or with null, are passed over."""
  found = [
    (row['step'], row[key]) for row in rows if row['stage'] == stage and row.get(key) is not None
  ]
  return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], width: int) -> list[float]:
  """Mean over about `width` neighbours: centred, at the end looking back.

  At the start the window shrinks evenly on both sides: curves are steep there, and a lopsided
  mean would hide where they began.
  """
  half, out = width // 2, []
  for i in range(len(values)):
    window = values[max(i - half, 0) : i + min(half, i) + 1]
    out.append(sum(window) / len(window))
  return out


def time_split(rows: Sequence[Row]) -> dict[str, float]:
  """Seconds by part (`time/rollout` → rollout), summed over the rows."""
  total: dict[str, float] = {}
  for row in rows:
    for key, value in row.items():
      if key.startswith('time/') and value is not None:
        part = key.removeprefix('time/')
        total[part] = total.get(part, 0.0) + value
  return total


def colours(names: Sequence[str]) -> dict[str, str]:
  """The colour of each stage; those without one of their own take turns."""
  turns = itertools.cycle(OTHERS)
  return {name: STAGES.get(name) or next(turns) for name in dict.fromkeys(names)}


def curve(
  rows: Sequence[Row],
  stage: str,
  lines: Sequence[Line],
  title: str,
  unit: str,
  level: Level = Level(),
  zero: bool = False,
) -> Panel | None:
  """Metrics against the step: raw faint, smoothed strong; None where there is none of them.

  zero: the axis starts there. Shares, whose unit starts with '%', are written in percent.
  """
  found = [(line, *series(rows, stage, line.key)) for line in lines]
  found = [(line, steps, values) for line, steps, values in found if steps]
  if not found:
    return None

  def panel(axes: Axes) -> None:
    for line, steps, values in found:
      colour = line.colour or colours(stages(rows))[stage]
      dots = 'o' if len(steps) < 3 else None
      axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1, marker=dots, markersize=4)
      even = smooth(values, max(len(values) // 12, 1))
      axes.plot(steps, even, color=colour, linewidth=2, label=line.label or None)
    if level.height is not None:
      colour = STAGES['sft']
      axes.axhline(level.height, color=colour, linewidth=1.2, linestyle='--', label=level.label)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize=8, frameon=False, loc='best')
    if zero and min(min(values) for _, _, values in found) >= 0:
      axes.set_ylim(bottom=0)
    _steps(axes, title, stage, unit)

  return panel


def stacked(
  rows: Sequence[Row], stage: str, lines: Sequence[Line], title: str, unit: str
) -> Panel | None:
  """Shares that add up to 1, smoothed and on top of each other; None without rows of the first.

  What a row lacks is 0 there; what is 0 everywhere is left out.
  """
  held = [r for r in rows if r['stage'] == stage and r.get(lines[0].key) is not None]
  steps = [row['step'] for row in held]
  values = {line: [row.get(line.key) or 0.0 for row in held] for line in lines}
  values = {line: found for line, found in values.items() if any(found)}
  if not values:
    return None

  def panel(axes: Axes) -> None:
    edges = [step - 0.5 for step in steps] + [steps[-1] + 0.5]
    below = [0.0] * len(steps)
    for line, found in values.items():
      even = smooth(found, max(len(found) // 12, 1))
      above = [a + b for a, b in zip(below, even)]
      axes.stairs(above, edges, baseline=below, fill=True, color=line.colour, label=line.label)
      below = above
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.14)  # the legend above the areas
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(False)
    axes.legend(
      fontsize=8, frameon=False, loc='upper left', ncols=4, columnspacing=1, handlelength=1,
      borderaxespad=0,
    )  # fmt: skip
    _steps(axes, title, stage, unit)

  return panel


def percent(axis: Any) -> None:
  """Writes an axis of shares in percent."""
  axis.set_major_formatter(PercentFormatter(1, symbol=' %'))


def label(axes: Axes, title: str, x: str, y: str) -> None:
  """Title and axes, as every panel has them."""
  axes.set_title(title, fontsize=11, loc='left', fontweight='bold')
  axes.set_xlabel(x, fontsize=9)
  axes.set_ylabel(y, fontsize=9)


def _steps(axes: Axes, title: str, stage: str, unit: str) -> None:
  if unit.startswith('%'):
    percent(axes.yaxis)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  label(axes, title, f'{stage.upper()} step', unit.removeprefix('%').strip())
