"""Figures of graded completions by hand, and that those of batches add up to those of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.core import metrics
from r1jax.core.interval import wilson
from r1jax.engine.generate import Samples
from r1jax.rollout import telemetry
from r1jax.tasks.task import Example, Grade, Outcome

TEXTS = [
  '<think>wait, hmm: 3</think><answer>3</answer>',
  '<think>4</think><answer>4</answer>',
  'nonsense, wait',
  '<think>actually',
]
GRADES = [
  Grade(Outcome.CORRECT, 1.5, {'accuracy': 1.0, 'format': 1.0}),
  Grade(Outcome.WRONG, 0.5, {'accuracy': 0.0, 'format': 1.0}),
  Grade(Outcome.UNPARSEABLE, 0.0, {'accuracy': 0.0, 'format': 0.0}),
  Grade(Outcome.TIMEOUT, 0.0, {'timeout': 1.0}),
]


def samples(lengths, stopped=True):
  zeros = np.zeros((len(lengths), 8))
  flags = np.broadcast_to(np.asarray(stopped), len(lengths))
  return Samples(zeros, zeros, np.array(lengths), flags, ())


def test_figures_by_hand():
  made = samples([4, 2, 8, 8], [True, True, True, False])
  low, high = wilson(1, 4)
  assert telemetry.figures(made, TEXTS, GRADES) == {
    'reward': 0.5,
    'accuracy': 0.25,
    'wrong': 0.25,
    'unparseable': 0.25,
    'timeout': 0.25,
    'length': 5.5,
    'length/correct': 4.0,
    'length/wrong': 2.0,
    'truncated': 0.25,
    'self_checks': 0.5,
    'well_formed': 0.5,
    'part/accuracy': 0.25,
    'part/format': 0.5,
    'part/timeout': 0.25,
    'language/en': 1.0,
    'accuracy_low': low,
    'accuracy_high': high,
  }


def test_what_nothing_was_counted_for_is_left_out():
  """No correct one has no length, digits have no language, without the gold nobody looks for it."""
  grades = [Grade(Outcome.WRONG, 0.0)] * 2
  found = telemetry.figures(samples([4, 6]), ['<think>1</think>', ''], grades, EXAMPLES[:2])
  assert not {'length/correct', 'first_correct', 'early_correct', 'zero_variance'} & found.keys()
  assert found['length/wrong'] == 5.0 and not any(n.startswith('language') for n in found)
  assert (found['accuracy_low'], found['accuracy_high']) == wilson(0, 2)


EXAMPLES = [Example(f'{task}/{i}', 'q', '3') for task, i in zip('aabb', range(4))]


def test_tasks_are_told_apart_where_there_are_two():
  made = samples([1] * 4)
  found = telemetry.figures(made, TEXTS, GRADES, EXAMPLES)
  assert {n: x for n, x in found.items() if n.startswith('task/')} == {
    'task/a/accuracy': 0.5,
    'task/b/accuracy': 0.0,
  }
  for lone in ([Example('a/1', 'q', '3')] * 4, [Example(str(i), 'q', '3') for i in range(4)]):
    found = telemetry.figures(made, TEXTS, GRADES, lone)
    assert not any(n.startswith('task/') for n in found) and 'first_correct' in found


def test_contract_10_groups_of_equal_rewards_are_counted():
  assert telemetry.zero_variance([1, 1, 0, 1, 0.1, 0.1], 2) == (2.0, 3.0)
  grades = [Grade(Outcome.WRONG, r) for r in (1.0, 1.0, 0.0, 1.0)]
  assert telemetry.figures(samples([1] * 4), TEXTS, grades, group=2)['zero_variance'] == 0.5
  assert 'zero_variance' not in telemetry.figures(samples([1] * 4), TEXTS, grades, group=1)


@pytest.mark.parametrize(
  ('gold', 'completion', 'share'),
  [
    ('7', '<think>1+2=3\n3+4=7</think><answer>7</answer><|eos|>', 11 / 14),
    ('7', '<think>7 it is, I am sure</think>\n<answer>7</answer>', 1 / 22),
    ('7', '<think>17, 70, 7.5, 0.7, -7, 7a, −7</think><answer>7</answer>', 1.0),
    ('7', 'is it 7? yes', 7 / 12),
    ('7', 'so 7.', 4 / 5),
    ('-7', '3-7 is wrong, -7', 1.0),
    ('1/2', '<think>a half</think><answer>0.5</answer>', None),
    ('ice  cream', 'the ice\ncream cone', 13 / 18),
    (r'\frac{1}{2}', r'so $\frac{1}{2}$', 15 / 16),
    ('', 'anything', None),
  ],
)
def test_first_written(gold, completion, share):
  assert telemetry.first_written(gold, completion) == (share and pytest.approx(share))


def test_only_correct_completions_are_searched_for_the_gold():
  texts = [
    '<think>7, then on and on</think><answer>7</answer>',
    '<think>1</think><answer>7</answer>',
  ]
  asked, right = [Example('a', 'q', '7')] * 3, Grade(Outcome.CORRECT, 1.0)
  found = telemetry.insight(asked, [*texts, '7'], [right, right, Grade(Outcome.WRONG, 0.0)])
  assert found['first_correct'] == (pytest.approx(1 / 20 + 1.0), 2.0)
  assert found['early_correct'] == (1.0, 2.0)
  assert telemetry.insight([Example('a', 'q')], ['7'], [right])['first_correct'] == (0.0, 0.0)


def test_languages_are_means_over_thoughts_with_words():
  found = telemetry.languages(['and then we add', '我们先加', '1 + 2 = 3', ''])
  shares = {n: x / w for n, (x, w) in found.items() if x}
  assert shares == {'language/en': 0.5, 'language/zh': 0.5}
  assert {w for _, w in found.values()} == {2.0}


ROWS = st.tuples(
  st.sampled_from(GRADES), st.sampled_from(TEXTS), st.integers(1, 8), st.sampled_from('ab')
)


@settings(deadline=None)
@given(st.lists(st.tuples(ROWS, ROWS), min_size=2, max_size=8), st.data())
def test_batches_add_up_to_the_whole(pairs, data):
  """Parts that a batch lacks and tasks that it does not have included."""
  rows = [row for pair in pairs for row in pair]
  cut = 2 * data.draw(st.integers(1, len(pairs) - 1))

  def measure(part):
    grades, texts, lengths, names = zip(*part)
    asked = [Example(f'{name}/0', 'q', '3') for name in names]
    return telemetry.measure(samples(lengths), texts, grades, asked, 2)

  parts = metrics.add(measure(rows[:cut]), measure(rows[cut:]))
  assert telemetry.finish(parts) == pytest.approx(telemetry.finish(measure(rows)))
