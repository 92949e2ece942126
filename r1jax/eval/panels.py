"""The panels of report.png: which there are, in reading order, each only where it has data.

What a stage's rows of metrics.jsonl hold says what it is: 'reward' is reinforcement learning,
'margin' pairs of answers, 'divergence' or 'layerN/unexplained' a student with a teacher,
'value_loss' a critic. Evaluations give the bars: accuracy, preferences, and the calibration of a
reward model from

    'calibration_bins': [[count, mean probability, mean label], …], 'calibration_error': 0.03
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from r1jax.core.interval import wilson
from r1jax.eval.curves import (
  BLACK,
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  SKY,
  VERMILLION,
  Level,
  Line,
  Panel,
  Row,
  colours,
  curve,
  label,
  percent,
  rollouts,
  series,
  stacked,
  stages,
  time_split,
)

PARTS = {
  'data': BLUE,
  'rollout': SKY,
  'reward': GREEN,
  'train': ORANGE,
  'compile': GREY,
  'evaluate': PURPLE,
  'checkpoint': BLACK,
}
OUTCOMES = (
  Line('accuracy', 'correct', GREEN),
  Line('wrong', 'wrong', ORANGE),
  Line('unparseable', 'unparseable', GREY),
  Line('timeout', 'timeout', BLACK),
)
LENGTHS = (
  Line('length', 'all', BLACK),
  Line('length/correct', 'correct', GREEN),
  Line('length/wrong', 'wrong', ORANGE),
)
INSIGHT = (
  Line('first_correct', 'share of the answer until then', BLUE),
  Line('early_correct', 'before the last tenth', ORANGE),
)
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, GREY)
LOSSES = {'pretrain': 'Pretraining loss', 'sft': 'SFT loss'}
NATS = 'nats per token'
_LAYER = re.compile(r'layer\d+/unexplained')


def panels(rows: Sequence[Row], evaluations: Sequence[Row]) -> list[Panel]:
  """The panels that have data; `evaluations` carry their intervals (report.complete)."""
  learning = rollouts(rows)
  taught = [s for s in stages(rows) if s not in learning]
  found = [p for s in taught for p in offline(rows, s, evaluations)]
  found += [curve(rows, s, [Line('reward')], 'Reward', 'mean reward') for s in learning]
  palette = colours([*stages(rows), *(e['stage'] for e in evaluations)])
  found += [held_out(evaluations, palette), preferences(evaluations, palette)]
  found += [calibration(e) for e in evaluations if e.get('calibration_bins')]
  found += [p for s in learning for p in reinforced(rows, s, evaluations)]
  return [p for p in [*found, times(rows)] if p is not None]


def offline(rows: Sequence[Row], stage: str, evaluations: Sequence[Row]) -> Iterator[Panel | None]:
  """A stage on data: its loss, and what pairs, labels or a teacher add."""
  text = next((e['held_out_loss'] for e in evaluations if 'held_out_loss' in e), None)
  level = Level(text if stage == 'pretrain' else None, 'held-out text')
  one = lambda key, *rest, **more: curve(rows, stage, [Line(key)], *rest, **more)
  unit = NATS if stage in LOSSES else 'mean loss'
  yield one('loss', LOSSES.get(stage, f'{stage.upper()} loss'), unit, level=level)
  paired = any('margin' in r for r in rows if r['stage'] == stage)
  title = 'Preference accuracy' if paired else 'Label accuracy'
  judged = [Line('accuracy', 'pairs in order' if paired else 'labels met'),
            Line('solved', 'whole solutions', BLACK)]  # fmt: skip
  yield curve(rows, stage, judged, title, '% share')
  yield one('margin', 'Preference margin', 'reward, chosen − rejected')
  yield one('divergence', 'Divergence from the teacher', NATS, zero=True)
  yield one('agreement', 'Agreement with the teacher', '% tokens with the same likeliest kept')
  lines = _layers(rows, stage)
  yield curve(rows, stage, lines, "The teacher's layers", '% unexplained', zero=True)


def reinforced(
  rows: Sequence[Row], stage: str, evaluations: Sequence[Row]
) -> Iterator[Panel | None]:
  """A stage of rollouts, behind its reward."""
  one = lambda key, *rest, **more: curve(rows, stage, [Line(key)], *rest, **more)
  sft = {k: Level(_after_sft(evaluations, k)) for k in ('length', 'self_checks')}
  yield stacked(rows, stage, OUTCOMES, 'Outcomes', '% share of the answers')
  yield curve(rows, stage, _lengths(rows, stage), 'Completion length', 'tokens', sft['length'])
  yield one('kl', 'KL to the reference', NATS, zero=True)
  yield one('entropy', 'Entropy', NATS, zero=True)
  if any(series(rows, stage, 'clip_fraction')[1]):  # one update a rollout clips nothing
    yield one('clip_fraction', 'Clipped tokens', '% share of the tokens', zero=True)
  yield one('zero_variance', 'Groups of equal rewards', '% share of the groups', zero=True)
  yield one('sampled_difference', 'Trainer against sampler', 'mean |Δ log p|, nats', zero=True)
  yield one('value_loss', 'Value loss', 'half squared error', zero=True)
  yield one('explained_variance', 'Explained variance of returns', '% share')
  yield one('self_checks', 'Self-checks', 'per answer', level=sft['self_checks'], zero=True)
  yield curve(rows, stage, INSIGHT, 'Gold answer first written', '% share')
  yield languages(rows, stage)


def languages(rows: Sequence[Row], stage: str) -> Panel | None:
  """What thoughts are written in, where that is more than one language."""
  mine = [r for r in rows if r['stage'] == stage]
  sums: dict[str, float] = {}
  for key, value in (pair for row in mine for pair in row.items()):
    if key.startswith('language/') and value:
      sums[key] = sums.get(key, 0.0) + value
  if len(sums) < 2:
    return None
  order = sorted(sums, key=sums.get, reverse=True)
  # More than the palette has are one: the rarest, as the rest.
  shown, rest = order[: len(PALETTE)], order[len(PALETTE) :]
  # Telemetry leaves languages out that nobody wrote: 0 in a step that has others.
  spoken = [row for row in mine if any(row.get(k) is not None for k in sums)]
  made = [
    row | {k: row.get(k) or 0.0 for k in shown} | {'rest': sum(row.get(k) or 0.0 for k in rest)}
    for row in spoken
  ]
  lines = [Line(k, k.removeprefix('language/'), c) for k, c in zip(shown, PALETTE)]
  return stacked(
    made, stage, [*lines, Line('rest', 'rest', BLACK)], 'Languages', '% words of the thoughts'
  )


def held_out(evaluations: Sequence[Row], palette: Mapping[str, str]) -> Panel | None:
  """Held-out accuracy of each evaluation, sampled and greedy, with 95 % intervals."""
  kinds = [('sampled, T = 1', 'accuracy', 'interval', 1.0)]
  if any('accuracy' in e and 'greedy_accuracy' in e for e in evaluations):
    kinds.append(('greedy', 'greedy_accuracy', 'greedy_interval', 0.45))
  return bars(evaluations, palette, kinds, 'Held-out accuracy', 'answers correct, 95 % interval')


def preferences(evaluations: Sequence[Row], palette: Mapping[str, str]) -> Panel | None:
  """Held-out pairs that each evaluation puts in order."""
  kinds = [('held-out pairs', 'preference_accuracy', 'preference_interval', 1.0)]
  title, unit = 'Held-out preferences', 'pairs in order, 95 % interval'
  return bars(evaluations, palette, kinds, title, unit, Level(0.5, 'chance'))


def bars(
  evaluations: Sequence[Row],
  palette: Mapping[str, str],
  kinds: Sequence[tuple[str, str, str, float]],
  title: str,
  unit: str,
  level: Level = Level(),
) -> Panel | None:
  """A group of bars an evaluation, in its stage's colour.

  kinds: (label, key, key of the interval, strength of the colour).
  """
  shown = [e for e in evaluations if kinds[0][1] in e]
  if not shown:
    return None

  def panel(axes: Axes) -> None:
    width = 0.72 / len(kinds)
    for k, (name, key, interval, strength) in enumerate(kinds):
      for i, e in enumerate(shown):
        if key in e:
          x = i + (k - (len(kinds) - 1) / 2) * width
          paler = _paler(palette[e['stage']], strength)
          _bar(axes, x, 0.94 * width, e[key], e.get(interval), paler)
      axes.bar([0], [0], color=_paler(GREY, strength), label=name)  # the legend, of no stage
    if level.height is not None:
      axes.axhline(level.height, color=BLACK, linewidth=1.2, linestyle='--', label=level.label)
    names = [e['name'] if len(shown) < 3 else e['name'].replace(' ', '\n') for e in shown]
    axes.set_xticks(range(len(shown)), names)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    percent(axes.yaxis)
    axes.legend(fontsize=8, frameon=False, loc='upper left', ncols=2, borderaxespad=0)
    label(axes, title, '', unit)

  return panel


def calibration(evaluation: Row) -> Panel | None:
  """Mean label against mean probability of each bin, with 95 % intervals; None without examples."""
  bins = [tuple(b) for b in evaluation['calibration_bins'] if b[0]]
  if not bins:
    return None

  def panel(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle='--', label='calibrated')
    for count, probability, share in bins:
      low, high = wilson(min(share, 1.0) * count, count)
      axes.plot([probability] * 2, [low, high], color=BLUE, linewidth=1.2)
    most = max(count for count, _, _ in bins)
    sizes = [12 + 60 * count / most for count, _, _ in bins]
    points = [(p, share) for _, p, share in bins]
    axes.scatter(*zip(*points), s=sizes, color=BLUE, zorder=3, label='bins, larger: more examples')
    error = evaluation.get('calibration_error')
    if error is not None:
      axes.text(0.98, 0.03, f'expected error {100 * error:.1f} %', ha='right', fontsize=9)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    percent(axes.xaxis)
    percent(axes.yaxis)
    axes.legend(fontsize=8, frameon=False, loc='upper left')
    name = f'Calibration, {evaluation["name"]}'
    label(axes, name, 'mean probability', 'mean label, 95 % interval')

  return panel


def times(rows: Sequence[Row]) -> Panel | None:
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
    percent(axes.xaxis)
    axes.grid(False)
    axes.legend(fontsize=8, frameon=False, loc='upper center', ncols=3, columnspacing=1)
    label(axes, 'Where the time goes', 'share of the stage', '')

  return panel


def _lengths(rows: Sequence[Row], stage: str) -> Sequence[Line]:
  """Of all, of correct and of wrong completions; one line in the stage's colour without the two."""
  apart = any(line.key in r for r in rows if r['stage'] == stage for line in LENGTHS[1:])
  return LENGTHS if apart else [Line('length')]


def _layers(rows: Sequence[Row], stage: str) -> list[Line]:
  """A line a layer that imitates the teacher's."""
  keys = {k for r in rows if r['stage'] == stage for k in r if _LAYER.fullmatch(k)}
  names = sorted((k.split('/')[0] for k in keys), key=lambda name: int(name.removeprefix('layer')))
  turns = itertools.cycle(PALETTE)
  return [Line(f'{n}/unexplained', n.replace('layer', 'layer '), c) for n, c in zip(names, turns)]


def _after_sft(evaluations: Sequence[Row], key: str) -> float | None:
  """Where the first SFT evaluation stood."""
  return next((e.get(key) for e in evaluations if e['stage'] == 'sft'), None)


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


def _paler(colour: str, strength: float) -> tuple[float, ...]:
  """The colour mixed with white; unlike alpha it hides the grid behind it."""
  return tuple(1 - strength * (1 - c) for c in to_rgb(colour))
