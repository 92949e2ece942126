"""What a run reached: a table, summary.json and report.png from its metrics and evaluations.

    summary = write(workdir, rows, evaluations, {'name': 'quickstart', 'revision': '3f2a91c'})
    print(table(evaluations))

rows: the lines of metrics.jsonl. An evaluation is a mapping
    {'name': 'after SFT', 'stage': 'sft', 'step': 400, 'samples': 1024, 'correct': 512,
     'greedy_accuracy': 0.5, 'greedy_samples': 256, 'length': 21.3, 'self_checks': 0.4,
     'well_formed': 0.98}
of which everything below `stage` may be absent (pretraining has 'held_out_loss' instead): what no
evaluation has is a column and a panel left out, what one of them lacks is a dash.

Intervals are Wilson's at 95 % (z = 1.96), which stay inside [0, 1] and do not shrink to nothing at
k = 0 or k = n:   (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core import files
from r1jax.eval import curves

Row = Mapping[str, Any]
Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(k: float, n: float) -> tuple[float, float]:
  """The 95 % interval of a proportion of k in n; everything when n is 0."""
  if not 0 <= k <= n:
    raise ValueError(f'{k} of {n} is no proportion: expected 0 ≤ k ≤ n')
  if n == 0:
    return 0.0, 1.0
  p, w = k / n, Z * Z / n
  half = Z * math.sqrt(p * (1 - p) / n + w / (4 * n))
  low, high = (p + w / 2 - half) / (1 + w), (p + w / 2 + half) / (1 + w)
  return max(low, 0.0), min(high, 1.0)


def complete(evaluations: Sequence[Row]) -> list[dict[str, Any]]:
  """The evaluations with accuracy, intervals and self-checks beyond the SFT rate filled in."""
  sft = [e['self_checks'] for e in evaluations if e['stage'] == 'sft' and 'self_checks' in e]
  return [_complete(e, sft[0] if sft else None) for e in evaluations]


def _complete(evaluation: Row, sft_self_checks: float | None) -> dict[str, Any]:
  e = dict(evaluation)
  if e.get('samples') and 'correct' in e:
    e['accuracy'] = e['correct'] / e['samples']
    e['interval'] = wilson(e['correct'], e['samples'])
  if e.get('greedy_samples') and 'greedy_accuracy' in e:
    e['greedy_interval'] = wilson(e['greedy_accuracy'] * e['greedy_samples'], e['greedy_samples'])
  if sft_self_checks is not None and 'self_checks' in e:
    e['self_checks_beyond_sft'] = e['self_checks'] - sft_self_checks
  return e


COLUMNS: dict[str, Callable[[Row], str | None]] = {
  'held-out loss': lambda e: _number(e.get('held_out_loss'), '.3f'),
  'perplexity': lambda e: _number(e.get('perplexity'), '.2f'),
  'accuracy (T=1)': lambda e: _percent(e.get('accuracy')),
  '95 % interval': lambda e: ' – '.join(map(_percent, e['interval'])) if 'interval' in e else None,
  'greedy': lambda e: _percent(e.get('greedy_accuracy')),
  'no chain': lambda e: _percent(e.get('no_thought_accuracy')),
  'length': lambda e: _number(e.get('length'), '.1f'),
  'self-checks': lambda e: _number(e.get('self_checks_beyond_sft'), '+.2f'),
  'well-formed': lambda e: _percent(e.get('well_formed')),
}
NOTES = {
  'held-out loss': 'held-out loss: nats a token',
  'no chain': 'no chain: the thought forced empty',
  'length': 'length: mean tokens an answer',
  'self-checks': 'self-checks: an answer, beyond the SFT rate',
}


def table(evaluations: Sequence[Row]) -> str:
  """The evaluations as lines of text, a column each for what was measured in any of them."""
  whole = complete(evaluations)
  columns = {title: [cell(e) for e in whole] for title, cell in COLUMNS.items()}
  shown = {title: cells for title, cells in columns.items() if any(c is not None for c in cells)}
  lines = [('', *shown)]
  for i, e in enumerate(whole):
    lines.append((e['name'], *('–' if c[i] is None else c[i] for c in shown.values())))
  widths = [max(map(len, column)) for column in zip(*lines)]
  rows = [
    '  '.join(_aligned(cell, w, i) for i, (cell, w) in enumerate(zip(r, widths))) for r in lines
  ]
  rule = '─' * len(rows[0])
  note = '; '.join(text for title, text in NOTES.items() if title in shown)
  body = [rows[0].rstrip(), rule, *(row.rstrip() for row in rows[1:]), rule]
  return '\n'.join([*body, note] if note else body)


def summary(
  rows: Sequence[Row], evaluations: Sequence[Row], facts: Row | None = None
) -> dict[str, Any]:
  """The table's figures, the gain of RL over SFT, and the steps, speed and time of each stage.

  facts: what else belongs in it (name, revision, seed, …), first.
  """
  whole = complete(evaluations)
  out = {**(facts or {}), 'evaluations': whole}
  measured = [e for e in whole if 'accuracy' in e]
  before = [e for e in measured if e['stage'] == 'sft']
  after = [e for e in measured if e['stage'] == 'grpo']
  if before and after:
    # The first SFT evaluation against the furthest GRPO one; of equals the first, so that
    # ablations (continued SFT, answers without the chain) may follow in the list.
    furthest = max(after, key=lambda e: e.get('step', 0))
    out['gain_points'] = 100 * (furthest['accuracy'] - before[0]['accuracy'])
  out['stages'] = {}
  for stage in curves.stages(rows):
    mine = [row for row in rows if row['stage'] == stage]
    speeds = [s for row in mine if (s := row.get('tokens_per_s')) is not None]
    out['stages'][stage] = {
      'steps': max(row['step'] for row in mine),
      'tokens_per_s': sum(speeds) / len(speeds) if speeds else None,
      'seconds': curves.time_split(mine),
    }
  return out


def write(
  workdir: str | pathlib.Path,
  rows: Sequence[Row],
  evaluations: Sequence[Row],
  facts: Row | None = None,
) -> dict[str, Any]:
  """Writes summary.json and report.png into a workdir and gives the summary."""
  made = summary(rows, evaluations, facts)
  files.write_json(pathlib.Path(workdir) / 'summary.json', made)
  draw(rows, evaluations, pathlib.Path(workdir) / 'report.png', title(made))
  return made


def draw(
  rows: Sequence[Row], evaluations: Sequence[Row], path: str | pathlib.Path, title: str = ''
) -> None:
  """Draws what there is of the run's curves and evaluations into a PNG."""
  curves.draw(rows, complete(evaluations), path, title)


def title(facts: Row) -> str:
  """'quickstart · 3f2a91c' of {'name': …, 'revision': …}, either of them absent or empty."""
  return ' · '.join(str(facts[key]) for key in ('name', 'revision') if facts.get(key))


def _aligned(cell: str, width: int, column: int) -> str:
  return cell.ljust(width) if column == 0 else cell.rjust(width)


def _percent(x: float | None) -> str | None:
  return None if x is None else f'{100 * x:.1f} %'


def _number(x: float | None, form: str) -> str | None:
  return None if x is None else format(x, form)
