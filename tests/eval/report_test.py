"""The report's figures, its table part by part, dashes for what is absent."""

import json

from r1jax.core.interval import wilson
from r1jax.eval import report

SFT = {
  'name': 'after SFT',
  'stage': 'sft',
  'step': 400,
  'samples': 1024,
  'correct': 512,
  'greedy_accuracy': 0.5,
  'no_thought_accuracy': 0.025,
  'greedy_samples': 256,
  'length': 21.25,
  'self_checks': 0.4,
  'well_formed': 0.98,
}
GRPO = SFT | {
  'name': 'after GRPO',
  'stage': 'grpo',
  'step': 90,
  'correct': 768,
  'greedy_accuracy': 0.8,
  'self_checks': 0.65,
  'length': 30.0,
}
ROWS = [
  {'stage': 'sft', 'step': 1, 'loss': 2.0, 'tokens_per_s': 100.0, 'time/train': 1.0},
  {'stage': 'sft', 'step': 2, 'loss': 1.0, 'tokens_per_s': 300.0, 'time/train': 2.0},
  {'stage': 'grpo', 'step': 1, 'reward': None, 'tokens_per_s': None, 'time/rollout': 3.0},
  {'stage': 'grpo', 'step': 2, 'reward': 0.5, 'time/rollout': 1.0, 'time/train': 4.0},
]


def test_table():
  assert report.table([SFT, GRPO]).splitlines() == [
    '            accuracy (T=1)    95 % interval  greedy  no chain  length  self-checks  well-formed',  # noqa: E501
    '─' * 95,
    'after SFT           50.0 %  46.9 % – 53.1 %  50.0 %     2.5 %    21.2        +0.00       98.0 %',  # noqa: E501
    'after GRPO          75.0 %  72.3 % – 77.6 %  80.0 %     2.5 %    30.0        +0.25       98.0 %',  # noqa: E501
    '─' * 95,
    'no chain: the thought forced empty; length: mean tokens an answer; '
    'self-checks: an answer, beyond the SFT rate',
  ]


def test_several_samples_a_problem_measure_these_problems():
  for problems, noted in ((512, True), (1024, False)):
    text = report.table([SFT | {'problems': problems}, GRPO])
    assert ('95 % interval: of these problems; no chain' in text) == noted


def test_table_of_little():
  """A column that nothing fills is left out; one that some fill holds dashes."""
  assert report.table([{'name': 'after GRPO', 'stage': 'grpo'}]).splitlines() == [
    '',
    '─' * 10,
    'after GRPO',
    '─' * 10,
  ]
  text = {'name': 'after PRETRAIN', 'stage': 'pretrain', 'held_out_loss': 1.5, 'perplexity': 4.48}
  lines = report.table([text, SFT]).splitlines()
  assert lines[2].split() == ['after', 'PRETRAIN', '1.500', '4.48', *'–––––––']
  assert lines[3].split()[2:5] == ['–', '–', '50.0']


ZERO = SFT | {'wrong': 0.4, 'unparseable': 0.1, 'length/correct': 20.0, 'zero_variance': 0.75}
MIXED = GRPO | {'wrong': 0.25, 'first_correct': 0.755, 'early_correct': 0.5, 'timeout': 0.0}


def test_the_second_part_is_about_what_was_written():
  """Languages only where there are two; a task alone is the whole."""
  mixed = MIXED | {'language/zh': 0.02, 'language/en': 0.98, 'language/ko': 0.0}
  first, second, third = report.table([ZERO | {'language/en': 1.0}, mixed | TASKS]).split('\n\n')
  assert first == report.table([SFT, GRPO])
  title, rule, *rows, end, note, more = second.splitlines()
  names = ['wrong', 'unparseable', 'timeout', 'length if correct', 'gold at', 'early', 'undecided']
  assert title.split() == ' '.join([*names, 'languages']).split() and rule == end
  assert rows[0].split()[2:] == ['40.0', '%', '10.0', '%', '–', '20.0', '–', '–', '25.0', '%', '–']
  cells = ['25.0', '%', '–', '0.0', '%', '–', '75.5', '%', '50.0', '%', '–']
  assert rows[1].split()[2:] == [*cells, 'en', '98', '%,', 'zh', '2', '%,', 'ko', '0', '%']
  assert f'{note} {more}'.split('; ')[1] == 'early: before the last tenth'
  assert [line.split() for line in third.splitlines()[::2]] == [
    ['primes', 'sums'],
    ['after', 'GRPO', '10.0', '%', '90.0', '%'],
  ]


TASKS = {'task/sums/accuracy': 0.9, 'task/primes/accuracy': 0.1}


def test_the_part_about_preferences_has_the_rows_that_judge():
  judge = {'name': 'after REWARD', 'stage': 'reward', 'preference_correct': 81, 'margin': 1.25}
  judge |= {'preference_count': 263, 'calibration_error': 0.031, 'solved': 0.5, 'agreement': 0.31}
  text = report.table([SFT, judge])
  part = text.split('\n\n')[1].splitlines()
  assert ' '.join(part[2].split()) == (
    'after REWARD 30.8 % 25.5 % – 36.6 % 31.0 % +1.25 3.1 % 50.0 %'
  )
  assert part[4].startswith('preferences: held-out pairs in order; agreement')
  assert len(part) == 6 and max(map(len, part)) <= 120
  assert report.table([judge]) == '\n'.join(part)  # no part without cells
  made = report.summary([], [judge])['evaluations'][0]
  assert made['preference_interval'] == wilson(81, 263)


def test_summary():
  later = [SFT | {'name': 'more SFT', 'correct': 600}, GRPO | {'name': 'no chain', 'correct': 9}]
  made = report.summary(ROWS, [SFT, GRPO, *later], {'name': 'quickstart'})
  assert made['name'] == 'quickstart' and made['gain_points'] == 25.0
  assert [e['accuracy'] for e in made['evaluations'][:2]] == [0.5, 0.75]
  assert made['evaluations'][1]['interval'] == wilson(768, 1024)
  assert made['evaluations'][1]['self_checks_beyond_sft'] == 0.25
  assert made['stages'] == {
    'sft': {'steps': 2, 'tokens_per_s': 200.0, 'seconds': {'train': 3.0}},
    'grpo': {'steps': 2, 'tokens_per_s': None, 'seconds': {'rollout': 4.0, 'train': 4.0}},
  }
  assert 'gain_points' not in report.summary(ROWS, [SFT])
  assert 'gain_points' not in report.summary(ROWS, [GRPO])
  assert SFT.keys() == GRPO.keys() and 'accuracy' not in SFT  # the input is left as it was


def test_the_gain_is_of_rollouts_under_any_name():
  """From what stands in front of the first of them to the furthest of the last."""
  rows = [row | {'stage': {'grpo': 'ppo'}.get(row['stage'], row['stage'])} for row in ROWS]
  rows.append({'stage': 'more', 'step': 1, 'reward': 0.5})
  warm, ppo = SFT | {'stage': 'dpo', 'correct': 256}, GRPO | {'stage': 'ppo'}
  assert report.summary(rows, [SFT, warm, ppo])['gain_points'] == 50.0
  more = ppo | {'stage': 'more', 'step': 1, 'correct': 1024}
  assert report.summary(rows, [SFT, warm, ppo, more])['gain_points'] == 75.0


def test_write(tmp_path):
  made = report.write(tmp_path, ROWS, [SFT, GRPO], {'name': 'quickstart', 'revision': 'abc'})
  read = json.loads((tmp_path / 'summary.json').read_text())
  assert read['gain_points'] == made['gain_points'] == 25.0
  assert read['evaluations'][0]['interval'] == list(made['evaluations'][0]['interval'])
  assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_title():
  assert report.title({'name': 'a', 'revision': 'b'}) == 'a · b'
  assert report.title({'name': 'a', 'revision': ''}) == 'a' and report.title({}) == ''
