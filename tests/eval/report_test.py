"""The report's figures: intervals against published values, dashes for what is absent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
  ('k', 'n', 'low', 'high'),
  [
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_known_values(k, n, low, high):
  assert report.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_an_interval_around_k_of_n_and_symmetric(kn):
  k, n = kn
  low, high = report.wilson(k, n)
  assert 0 <= low <= high <= 1
  assert n == 0 or (low <= k / n + 1e-12 and k / n <= high + 1e-12)
  assert report.wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_refuses_what_is_no_proportion():
  with pytest.raises(ValueError, match='3 of 2'):
    report.wilson(3, 2)


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


def test_summary():
  later = [SFT | {'name': 'more SFT', 'correct': 600}, GRPO | {'name': 'no chain', 'correct': 9}]
  made = report.summary(ROWS, [SFT, GRPO, *later], {'name': 'quickstart'})
  assert made['name'] == 'quickstart' and made['gain_points'] == 25.0
  assert [e['accuracy'] for e in made['evaluations'][:2]] == [0.5, 0.75]
  assert made['evaluations'][1]['interval'] == report.wilson(768, 1024)
  assert made['evaluations'][1]['self_checks_beyond_sft'] == 0.25
  assert made['stages'] == {
    'sft': {'steps': 2, 'tokens_per_s': 200.0, 'seconds': {'train': 3.0}},
    'grpo': {'steps': 2, 'tokens_per_s': None, 'seconds': {'rollout': 4.0, 'train': 4.0}},
  }
  assert 'gain_points' not in report.summary(ROWS, [SFT])
  assert SFT.keys() == GRPO.keys() and 'accuracy' not in SFT  # the input is left as it was


def test_write(tmp_path):
  made = report.write(tmp_path, ROWS, [SFT, GRPO], {'name': 'quickstart', 'revision': 'abc'})
  read = json.loads((tmp_path / 'summary.json').read_text())
  assert read['gain_points'] == made['gain_points'] == 25.0
  assert read['evaluations'][0]['interval'] == list(made['evaluations'][0]['interval'])
  assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_title():
  assert report.title({'name': 'a', 'revision': 'b'}) == 'a · b'
  assert report.title({'name': 'a', 'revision': ''}) == 'a' and report.title({}) == ''
