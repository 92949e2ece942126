"""Parts of a group are added to grades that are there."""

import pytest

from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.rewards.group import GroupWeights, judged, regrade, regrade_all
from r1jax.rewards.outcome import Grade, Outcome

RIGHT, WRONG = Grade(Outcome.CORRECT, 0.7, {'accuracy': 1.0}), Grade(Outcome.WRONG, 0.0)
NONE, LATE = Grade(Outcome.UNPARSEABLE, 0.0, open=True), Grade(Outcome.TIMEOUT, 0.0)


def text(thought):
  return f'<think>{thought}</think><answer>7</answer>'


TEXTS = [text('a b c d'), text('a b c d'), text('e f g h'), text('i j k l')]


def test_added_weighed_and_kept():
  grades = [RIGHT, RIGHT, WRONG, NONE]
  new = regrade(grades, TEXTS, GroupWeights(diversity=0.5).parts())
  assert [g.parts['diversity'] for g in new] == [0.5, 0.5, 1.0, 0.0]
  assert [g.reward for g in new] == [0.95, 0.95, 0.5, 0.0]
  assert new[0].parts == {'accuracy': 1.0, 'diversity': 0.5}
  assert [(g.outcome, g.open) for g in new] == [(g.outcome, g.open) for g in grades]
  assert grades == [RIGHT, RIGHT, WRONG, NONE] and 'diversity' not in RIGHT.parts


def test_only_correct_samples_may_earn():
  parts = GroupWeights(diversity=1.0, earns='correct').parts()
  new = regrade([RIGHT, WRONG, RIGHT, LATE], TEXTS, parts)
  assert [g.parts['diversity'] for g in new] == [1.0, 0.0, 1.0, 0.0]


def test_relative_conciseness_by_characters_or_tokens():
  parts = GroupWeights(relative_conciseness=1.0).parts()
  texts = ['1234', '12345678', '1', '']
  grades = [RIGHT, RIGHT, WRONG, LATE]
  share = lambda new: [g.parts['relative_conciseness'] for g in new]
  assert share(regrade(grades, texts, parts)) == [1.0, 0.5, 0.0, 0.0]
  assert share(regrade(grades, texts, parts, [10, 5, 1, 1])) == [0.5, 1.0, 0.0, 0.0]


def test_nothing_asked_changes_nothing():
  assert regrade([RIGHT, NONE], ['', ''], GroupWeights().parts()) == [RIGHT, NONE]
  assert regrade([], [], GroupWeights(1.0, 1.0).parts()) == []


def test_many_prompts():
  grades, texts = [RIGHT] * 4, [text('a b c'), text('a b c'), text('a b c'), text('d e f')]
  new = regrade_all(grades, texts, 2, GroupWeights(diversity=1.0).parts())
  assert [g.parts['diversity'] for g in new] == [0.0, 0.0, 1.0, 1.0]
  with pytest.raises(UserError, match='4 samples are no whole groups of 3'):
    regrade_all(grades, texts, 3, {})


def test_a_model_of_safety_is_a_part():
  calls = []
  score = lambda texts: calls.append(texts) or [0.5] * len(texts)
  new = regrade([RIGHT, WRONG], ['fine', 'kill yourself'], {'safety_model': (0.2, judged(score))})
  assert [g.parts['safety_model'] for g in new] == [0.5, 0.0]
  assert calls == [['fine', 'kill yourself']]


@pytest.mark.parametrize(
  ('parts', 'message'),
  [
    ({'mine': (1.0, lambda s: [float('nan')] * len(s))}, "reward part 'mine' is nan"),
    ({'mine': (1.0, lambda s: [1.0])}, "reward part 'mine' gave 1 numbers for 2 samples"),
    ({'mine': (float('nan'), lambda s: [1.0] * len(s))}, "the weight of .*'mine' is nan"),
    ({'accuracy': (1.0, lambda s: [1.0] * len(s))}, "reward part 'accuracy' is there already"),
  ],
)
def test_what_a_part_may_not_be(parts, message):
  with pytest.raises(UserError, match=message):
    regrade([RIGHT, WRONG], ['', ''], parts)


@pytest.mark.parametrize(
  ('kw', 'message'),
  [
    ({'similarity': 'cosine'}, "no similarity 'cosine'"),
    ({'earns': 'wrong'}, "no kind of sample that earns 'wrong'"),
    ({'grams': 0}, 'grams=0'),
    ({'diversity': float('nan')}, "the weight of reward part 'diversity' is nan"),
  ],
)
def test_weights_are_checked_early(kw, message):
  with pytest.raises(UserError, match=message):
    GroupWeights(**kw)


def test_weights_are_a_config():
  weights = GroupWeights(0.3, similarity='jaccard', earns='correct')
  assert config.from_json(GroupWeights, config.to_json(weights)) == weights
