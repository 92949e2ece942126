"""What a run reached: a table, summary.json and report.png from its metrics and evaluations.

    summary = write(workdir, rows, evaluations, {'name': 'quickstart', 'revision': '3f2a91c'})
    print(table(evaluations))

rows: the lines of metrics.jsonl. An evaluation is a mapping
    {'name': 'after SFT', 'stage': 'sft', 'step': 400, 'samples': 1024, 'correct': 512,
     'greedy_accuracy': 0.5, 'greedy_samples': 256, 'length': 21.3, 'self_checks': 0.4,
     'well_formed': 0.98}
of which everything below `stage` may be absent (pretraining has 'held_out_loss' instead), and much
more present: what rollout/telemetry measures, and of preferences and reward models
    {'preference_correct': 88, 'preference_count': 100, 'agreement': 0.88, 'margin': 1.2,
     'calibration_error': 0.03, 'process_accuracy': 0.9, 'solved': 0.7}
What no evaluation has is a column and a panel left out, what one of them lacks is a dash.
Intervals are Wilson's at 95 % (core/interval).
"""

import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.core import files
from r1jax.core.interval import wilson
from r1jax.eval import curves
from r1jax.eval.panels import panels

Row = Mapping[str, Any]
NOTE = 120  # characters of a line of notes, or as many as the part has

Columns = Mapping[str, Callable[[Row], str | None]]


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
  if e.get('preference_count') and 'preference_correct' in e:
    e['preference_accuracy'] = e['preference_correct'] / e['preference_count']
    e['preference_interval'] = wilson(e['preference_correct'], e['preference_count'])
  if sft_self_checks is not None and 'self_checks' in e:
    e['self_checks_beyond_sft'] = e['self_checks'] - sft_self_checks
  return e


REACHED: Columns = {
  'held-out loss': lambda e: _number(e.get('held_out_loss'), '.3f'),
  'perplexity': lambda e: _number(e.get('perplexity'), '.2f'),
  'accuracy (T=1)': lambda e: _percent(e.get('accuracy')),
  '95 % interval': lambda e: _between(e.get('interval')),
  'greedy': lambda e: _percent(e.get('greedy_accuracy')),
  'no chain': lambda e: _percent(e.get('no_thought_accuracy')),
  'length': lambda e: _number(e.get('length'), '.1f'),
  'self-checks': lambda e: _number(e.get('self_checks_beyond_sft'), '+.2f'),
  'well-formed': lambda e: _percent(e.get('well_formed')),
}
WRITTEN: Columns = {
  'wrong': lambda e: _percent(e.get('wrong')),
  'unparseable': lambda e: _percent(e.get('unparseable')),
  'timeout': lambda e: _percent(e.get('timeout')),
  'length if correct': lambda e: _number(e.get('length/correct'), '.1f'),
  'if wrong': lambda e: _number(e.get('length/wrong'), '.1f'),
  'gold at': lambda e: _percent(e.get('first_correct')),
  'early': lambda e: _percent(e.get('early_correct')),
  'undecided': lambda e: _percent(None if 'zero_variance' not in e else 1 - e['zero_variance']),
  'languages': lambda e: _languages(e),
}
JUDGED: Columns = {
  'preferences before': lambda e: _percent(e.get('preference_accuracy_before')),
  'preferences': lambda e: _percent(e.get('preference_accuracy')),
  '95 % interval': lambda e: _between(e.get('preference_interval')),
  'agreement': lambda e: _percent(e.get('agreement')),
  'margin': lambda e: _number(e.get('margin'), '+.2f'),
  'calibration error': lambda e: _percent(e.get('calibration_error')),
  'labels': lambda e: _percent(e.get('label_accuracy')),
  'process': lambda e: _percent(e.get('process_accuracy')),
  'solved': lambda e: _percent(e.get('solved')),
}
NOTES = {
  'held-out loss': 'held-out loss: nats a token',
  'no chain': 'no chain: the thought forced empty',
  'length': 'length: mean tokens an answer',
  'self-checks': 'self-checks: an answer, beyond the SFT rate',
  'gold at': 'gold at: share of a correct answer read when it first has the gold',
  'early': 'early: before the last tenth',
  'undecided': 'undecided: problems whose answers differ in reward',
  'preferences': 'preferences: held-out pairs in order',
  'agreement': 'agreement: with the labels, a tie counts ½',
  'calibration error': 'calibration error: expected |label − probability|',
  'labels': 'labels: completions judged as labelled',
  'process': 'process: steps judged as labelled, solved: whole solutions',
}


def table(evaluations: Sequence[Row]) -> str:
  """The evaluations as lines of text: what was reached, then how it was written, judged, by task.

  A column each for what was measured in any of them, a row for each that has any of a part.
  """
  whole = complete(evaluations)
  more = [part for c in (WRITTEN, JUDGED, tasks(whole)) if (part := block(whole, c, every=False))]
  first = block(whole, REACHED, every=not more)
  return '\n\n'.join([first, *more] if first else more)


def block(whole: Sequence[Row], columns: Columns, every: bool) -> str:
  """One part of the table; blank without cells, unless `every` evaluation has its row."""
  cells = [[cell(e) for cell in columns.values()] for e in whole]
  kept = [i for i, row in enumerate(cells) if every or any(c is not None for c in row)]
  if not kept:
    return ''
  shown = [j for j in range(len(columns)) if any(cells[i][j] is not None for i in kept)]
  titles = [list(columns)[j] for j in shown]
  lines = [('', *titles)]
  for i in kept:
    lines.append((whole[i]['name'], *('–' if cells[i][j] is None else cells[i][j] for j in shown)))
  widths = [max(map(len, column)) for column in zip(*lines)]
  rows = [
    '  '.join(_aligned(cell, w, i) for i, (cell, w) in enumerate(zip(r, widths))) for r in lines
  ]
  rule = '─' * len(rows[0])
  notes = [NOTES[title] for title in titles if title in NOTES]
  if 'accuracy (T=1)' in titles and any(_repeated(whole[i]) for i in kept):
    notes.insert(0, '95 % interval: of these problems')
  note = '; '.join(notes)
  body = [rows[0].rstrip(), rule, *(row.rstrip() for row in rows[1:]), rule]
  return '\n'.join([*body, *textwrap.wrap(note, max(len(rule), NOTE))])


def tasks(evaluations: Sequence[Row]) -> Columns:
  """A column of accuracies for each task of a mixed evaluation."""
  keys = sorted({k for e in evaluations for k in e if k.startswith('task/')})
  return {k.split('/')[1]: lambda e, k=k: _percent(e.get(k)) for k in keys}


def summary(
  rows: Sequence[Row], evaluations: Sequence[Row], facts: Row | None = None
) -> dict[str, Any]:
  """The table's figures, the gain of RL, and the steps, speed and time of each stage.

  facts: what else belongs in it (name, revision, seed, …), first.
  """
  whole = complete(evaluations)
  out = {**(facts or {}), 'evaluations': whole}
  measured = [e for e in whole if 'accuracy' in e]
  order = curves.rollouts(rows)
  after = [i for i, e in enumerate(measured) if e['stage'] in order]
  if after and after[0]:
    # What stands in front of the first RL evaluation against the furthest one; of equals the first,
    # so that ablations (continued SFT, answers without the chain) may follow in the list.
    furthest = max(
      after, key=lambda i: (order.index(measured[i]['stage']), measured[i].get('step', 0))
    )
    before = measured[after[0] - 1]['accuracy']
    out['gain_points'] = 100 * (measured[furthest]['accuracy'] - before)
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
  curves.draw(panels(rows, complete(evaluations)), path, title)


def title(facts: Row) -> str:
  """'quickstart · 3f2a91c' of {'name': …, 'revision': …}, either of them absent or empty."""
  return ' · '.join(str(facts[key]) for key in ('name', 'revision') if facts.get(key))


def _aligned(cell: str, width: int, column: int) -> str:
  return cell.ljust(width) if column == 0 else cell.rjust(width)


def _repeated(e: Row) -> bool:
  """Whether problems have several samples, which the interval takes for independent ones."""
  return 'problems' in e and e.get('samples', 0) > e['problems']


def _between(interval: tuple[float, float] | None) -> str | None:
  return None if interval is None else ' – '.join(map(_percent, interval))


def _languages(e: Row) -> str | None:
  """'en 98 %, zh 2 %', the most used first; None where there is one alone."""
  shares = {k.removeprefix('language/'): x for k, x in e.items() if k.startswith('language/')}
  order = sorted(shares, key=shares.get, reverse=True)
  return ', '.join(f'{k} {100 * shares[k]:.0f} %' for k in order) if len(order) > 1 else None


def _percent(x: float | None) -> str | None:
  return None if x is None else f'{100 * x:.1f} %'


def _number(x: float | None, form: str) -> str | None:
  return None if x is None else format(x, form)
