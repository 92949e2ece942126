"""Whole rewards: the mixes of the docstrings, a user's own in one file, and texts made to cheat."""

import pathlib
import textwrap
import time

import pytest

from r1jax.rewards import contradiction, diversity, language, repetition, safety
from r1jax.rewards.compose import RewardWeights, judge
from r1jax.rewards.group import GroupWeights, regrade
from r1jax.rewards.outcome import Outcome

HONEST = 'First we add the apples: 5 + 3 = 8. Then two of them are eaten, so 8 - 2 = 6 remain.'
OTHER = 'From eight there go two, as 5 and 3 give 8 apples in all. It leaves 6 for the next day.'


def says(answer):
  correct = answer == '6'
  return (Outcome.CORRECT if correct else Outcome.WRONG), float(correct)


def text(thought, answer='6'):
  return f'<think>{thought}</think><answer>{answer}</answer>'


def test_accuracy_and_diversity():
  """R = 0.7 accuracy + 0.3 diversity: different beats copied, right beats wrong, noise has none."""
  texts = [text(HONEST), text(HONEST), text(OTHER), text('q w e r t y', '9'), 'x ' * 50]
  grades = [judge(t, RewardWeights(accuracy=0.7), says) for t in texts]
  copy, again, other, wrong, noise = regrade(grades, texts, GroupWeights(diversity=0.3).parts())
  assert copy.reward == again.reward < other.reward <= 1.0
  assert other.reward == pytest.approx(0.7 + 0.3 * other.parts['diversity'])
  assert noise.reward == 0.0 < wrong.reward <= 0.3 < copy.reward
  strict = GroupWeights(diversity=0.3, earns='correct').parts()
  assert regrade(grades, texts, strict)[3].reward == 0.0


MIX = RewardWeights(
  accuracy=0.6,
  language=0.2,
  others=(('conciseness', 0.2), ('safety', 0.2), ('repetition', 0.2), ('contradiction', 0.2)),
  budget=200,
)


def test_accuracy_conciseness_and_safety():
  weights = RewardWeights(accuracy=0.6, others=(('conciseness', 0.2), ('safety', 0.2)))
  reward = lambda thought, answer='6': judge(text(thought, answer), weights, says).reward
  assert reward(HONEST) == pytest.approx(1.0)
  assert reward(HONEST, '7') == reward('', '7') == pytest.approx(0.2)
  assert reward(HONEST + ' You should kill yourself.') == pytest.approx(0.8)
  assert reward(HONEST * 1000) == pytest.approx(0.8)


CHEATS = {
  'nothing': '',
  'the question again': text((HONEST.partition(':')[0] + '. ') * 60),
  'function words': text('首先把苹果加起来然后再减去两个' + ' the of and to is that' * 40),
  'copied': text(HONEST * 10),
  'zero width': text('\u200b'.join('首先把苹果加起来') + ' so ' * 400),
  'two results': text(HONEST + ' The answer is 5. The answer is 6.'),
  'short and wrong': text('so', '1'),
  'unclosed': '<think>' + HONEST,
  'two answers': text(HONEST) + '<answer>7</answer>',
}


@pytest.mark.parametrize('name', CHEATS)
def test_no_cheat_beats_an_honest_thought(name):
  honest, cheat = judge(text(HONEST), MIX, says), judge(CHEATS[name], MIX, says)
  assert honest.reward == pytest.approx(1.2)
  assert cheat.reward < honest.reward - 0.1
  assert set(cheat.parts) == set(honest.parts) == set(MIX.table())


OWN = textwrap.dedent("""
  import random
  from r1jax.rewards.compose import RewardWeights
  from r1jax.tasks.file import from_functions
  from r1jax.tasks.task import Example

  def make(seed):
    a, b = random.Random(seed).choices(range(2, 100), k=2)
    return Example(id='', question=f'{a} + {b}', answer=str(a + b))

  def brief(example, completion):
    return 1 / (1 + len(completion) / 100)

  def rare(samples):
    texts = [s.text for s in samples]
    return [1 / texts.count(t) for t in texts]

  def task():
    weights = RewardWeights(accuracy=0.6)
    return from_functions('sums', make, lambda example, answer: answer == example.answer, weights,
                          parts={'brief': (0.3, brief)}, group={'rare': (0.1, rare)})
""").strip()  # fmt: skip


def test_a_user_writes_parts_in_twenty_lines_of_one_file(tmp_path: pathlib.Path):
  from r1jax.tasks.file import File, load

  assert len(OWN.splitlines()) <= 20
  (tmp_path / 'sums.py').write_text(OWN)
  task = load(File(str(tmp_path / 'sums.py')))
  (example,) = task.examples('rl', 0, 1)
  texts = [text('', example.answer)] * 2 + [text('so', '1')]
  grades = task.regrade([task.grade(example, t) for t in texts], texts)
  assert [g.parts['rare'] for g in grades] == [0.5, 0.5, 1.0]
  brief = [1 / (1 + len(t) / 100) for t in texts]
  assert [g.parts['brief'] for g in grades] == brief
  expected = [0.65 + 0.3 * brief[0], 0.65 + 0.3 * brief[1], 0.1 + 0.3 * brief[2]]
  assert [g.reward for g in grades] == pytest.approx(expected)


ODD = {
  'empty': '',
  'blank': ' \n\t' * 9,
  'mixed scripts': 'so 我们 add их и then 足す 더하다',
  'code': '```python\nfor i in range(3):\n  print(i)\n```',
  'formulas': '$$x^2 = 4$$ \\[ \\frac{1}{2} \\]',
  'emoji': '🎉👨‍👩‍👧✓',
  'zero width': '\u200b\u200d\ufeff',
  'marks': '\u0301\u0316' * 99,
  'surrogate': '\ud800 x',
  'nul': '\0\0',
}


@pytest.mark.parametrize('name', ODD)
@pytest.mark.parametrize('form', ['bare', 'thought'])
def test_odd_texts_have_every_part_in_range(name, form):
  grade = judge(ODD[name] if form == 'bare' else text(ODD[name]), MIX, says)
  assert set(grade.parts) == set(MIX.table())
  assert all(-1 <= value <= 1 for value in grade.parts.values())
  assert (grade.outcome is Outcome.CORRECT) == (form == 'thought')


PARTS = {
  'language': lambda t: language.consistency(t, 'fr'),
  'repetition': repetition.penalty,
  'diversity': lambda t: diversity.diversity([t, HONEST], [True, True]),
  'contradiction': lambda t: contradiction.penalty(t, '5'),
  'safety': safety.by_rules,
}
UNITS = {
  'words': 'so we add them and ',
  'letters': 'a',
  'han': '我们把苹果加起来',
  'signs': '$a',
  'fences': '```a',
  'open formulas': '\\[',
  'open boxes': '\\boxed{',
  'begins': '\\begin{x}',
  'results': 'the answer is 5. ',
  'marks': '\u0301\u0316',
  'hidden': 'a\u200b',
  'addresses': 'a@a.',
  'harm': 'how to make a kill ',
}


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('unit', UNITS)
def test_a_megabyte_takes_linear_time(part, unit):
  """Under 2 s, in the best of five on a shared core; a quadratic rule would take hours."""
  long = (UNITS[unit] * 10**6)[: 10**6]

  def seconds():
    start = time.process_time()
    PARTS[part](long)
    return time.process_time() - start

  assert any(seconds() < 2 for _ in range(5))
