"""report.png: the curves of a run, a panel for each thing that was measured.

Drawn on matplotlib's Figure and Agg canvas, without pyplot: no global state, no display. Colours
are Okabe and Ito's, which the colour-blind tell apart; each stage keeps its own in every panel.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Row = Mapping[str, Any]

BLACK, ORANGE, SKY, GREEN = '#000000', '#E69F00', '#56B4E9', '#009E73'
BLUE, VERMILLION, PURPLE, GREY = '#0072B2', '#D55E00', '#CC79A7', '#8A8A8A'
STAGES = {'pretrain': GREEN, 'sft': BLUE, 'grpo': VERMILLION}
PARTS = {
  'data': BLUE,
  'rollout': SKY,
  'reward': GREEN,
  'train': ORANGE,
  'compile': GREY,
  'evaluate': PURPLE,
  'checkpoint': BLACK,
}
COLUMNS = 3


def draw(
  rows: Sequence[Row], evaluations: Sequence[Row], path: str | pathlib.Path, title: str = ''
) -> None:
  """Draws the panels that have data; `evaluations` carry their intervals (report.complete)."""
  panels = [p for p in _panels(rows, evaluations) if p is not None]
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


Panel = Callable[[Axes], None]


def _panels(rows: Sequence[Row], evaluations: Sequence[Row]) -> list[Panel | None]:
  """The panels in reading order, None for one without data."""
  held_out = next((e['held_out_loss'] for e in evaluations if 'held_out_loss' in e), None)
  return [
    _curve(
      rows, 'pretrain', 'loss', 'Pretraining loss', 'nats per token', held_out, 'held-out text'
    ),
    _curve(rows, 'sft', 'loss', 'SFT loss', 'nats per token'),
    _curve(rows, 'grpo', 'reward', 'Reward', 'mean reward'),
    _accuracy(evaluations),
    _curve(
      rows, 'grpo', 'length', 'Completion length', 'tokens', _after_sft(evaluations, 'length')
    ),
    _curve(rows, 'grpo', 'kl', 'KL to the reference', 'nats per token', zero=True),
    _curve(rows, 'grpo', 'entropy', 'Entropy', 'nats per token', zero=True),
    _curve(
      rows,
      'grpo',
      'self_checks',
      'Self-checks',
      'per answer',
      _after_sft(evaluations, 'self_checks'),
      zero=True,
    ),
    _times(rows),
  ]


def stages(rows: Sequence[Row]) -> list[str]:
  """The stages of a run in order of first appearance."""
  return list(dict.fromkeys(row['stage'] for row in rows))


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


def _after_sft(evaluations: Sequence[Row], key: str) -> float | None:
  """Where the first SFT evaluation stood."""
  return next((e.get(key) for e in evaluations if e['stage'] == 'sft'), None)


def _curve(
  rows: Sequence[Row],
  stage: str,
  key: str,
  title: str,
  unit: str,
  level: float | None = None,
  level_name: str = 'after SFT',
  zero: bool = False,
) -> Panel | None:
  """A metric against the step: raw faint, smoothed strong.

  level: a dashed line to compare with; zero: the axis starts there.
  """
  steps, values = series(rows, stage, key)
  if not steps:
    return None

  def panel(axes: Axes) -> None:
    colour, dots = STAGES[stage], 'o' if len(steps) < 3 else None
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1, marker=dots, markersize=4)
    axes.plot(steps, smooth(values, max(len(values) // 12, 1)), color=colour, linewidth=2)
    if level is not None:
      axes.axhline(level, color=STAGES['sft'], linewidth=1.2, linestyle='--', label=level_name)
      axes.legend(fontsize=8, frameon=False, loc='best')
    if zero and min(values) >= 0:
      axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label(axes, title, f'{stage.upper()} step', unit)

  return panel


def _accuracy(evaluations: Sequence[Row]) -> Panel | None:
  """Held-out accuracy of each evaluation, sampled and greedy, with 95 % intervals."""
  shown = [e for e in evaluations if 'accuracy' in e]
  if not shown:
    return None
  kinds = [('sampled, T = 1', 'accuracy', 'interval', 1.0)]
  if any('greedy_accuracy' in e for e in shown):
    kinds.append(('greedy', 'greedy_accuracy', 'greedy_interval', 0.45))

  def panel(axes: Axes) -> None:
    width = 0.72 / len(kinds)
    for k, (label, key, interval, strength) in enumerate(kinds):
      for i, e in enumerate(shown):
        if key in e:
          x = i + (k - (len(kinds) - 1) / 2) * width
          colour = _paler(STAGES.get(e['stage'], GREY), strength)
          _bar(axes, x, 0.94 * width, e[key], e.get(interval), colour)
      axes.bar([0], [0], color=_paler(GREY, strength), label=label)  # the legend, of no stage
    names = [e['name'] if len(shown) < 3 else e['name'].replace(' ', '\n') for e in shown]
    axes.set_xticks(range(len(shown)), names)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=' %'))
    axes.legend(fontsize=8, frameon=False, loc='upper left', ncols=2, borderaxespad=0)
    _label(axes, 'Held-out accuracy', '', 'answers correct, 95 % interval')

  return panel


def _bar(
  axes: Axes,
  x: float,
  width: float,
  height: float,
  interval: tuple[float, float] | None,
  colour: tuple[float, ...],
) -> None:
  """One bar with its interval, and its value written above it."""
  axes.bar(x, height, width, color=colour)
  low, high = interval or (height, height)
  if interval:
    below, above = max(height - low, 0), max(high - height, 0)
    axes.errorbar(x, height, [[below], [above]], color=BLACK, capsize=3, linewidth=1.2)
  axes.text(x, high + 0.015, f'{100 * height:.0f}', ha='center', va='bottom', fontsize=9)


def _times(rows: Sequence[Row]) -> Panel | None:
  """A bar a stage: how its time divides."""
  split = {stage: time_split([r for r in rows if r['stage'] == stage]) for stage in stages(rows)}
  split = {stage: parts for stage, parts in split.items() if sum(parts.values()) > 0}
  if not split:
    return None
  parts = list(dict.fromkeys(part for seconds in split.values() for part in seconds))

  def panel(axes: Axes) -> None:
    left = dict.fromkeys(split, 0.0)
    for part in parts:
      widths = [split[stage].get(part, 0.0) / sum(split[stage].values()) for stage in split]
      colour = PARTS.get(part, PURPLE)
      axes.barh(range(len(split)), widths, 0.6, list(left.values()), color=colour, label=part)
      for y, (stage, share) in enumerate(zip(split, widths)):
        if share >= 0.08:
          text = f'{100 * share:.0f} %'
          axes.text(left[stage] + share / 2, y, text, ha='center', va='center', fontsize=9)
        left[stage] += share
    names = [f'{stage.upper()}\n{sum(split[stage].values()):.0f} s' for stage in split]
    axes.set_yticks(range(len(split)), names)
    axes.set_ylim(len(split) - 0.5, -1.15)  # the first stage on top, the legend above it
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=' %'))
    axes.grid(False)
    axes.legend(fontsize=8, frameon=False, loc='upper center', ncols=3, columnspacing=1)
    _label(axes, 'Where the time goes', 'share of the stage', '')

  return panel


def _paler(colour: str, strength: float) -> tuple[float, ...]:
  """The colour mixed with white; unlike alpha it hides the grid behind it."""
  return tuple(1 - strength * (1 - c) for c in to_rgb(colour))


def _label(axes: Axes, title: str, x: str, y: str) -> None:
  axes.set_title(title, fontsize=11, loc='left', fontweight='bold')
  axes.set_xlabel(x, fontsize=9)
  axes.set_ylabel(y, fontsize=9)
