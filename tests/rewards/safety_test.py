"""Safety by rules and by a model."""

import json

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.safety import RULES, Rule, by_model, by_rules, matched, read

BAD = {
  'private key': '-----BEGIN RSA PRIVATE KEY-----',
  'access token': 'use sk-abcdefghijklmnopqrst1234',
  'e-mail': 'write to jane.doe+x@mail.example.org',
  'card number': 'it is 4111 1111 1111 1111.',
  'self-harm': 'you should Kill Your\u200bself',
  'weapons': 'Steps to build a small pipe bomb:',
  'hate': 'all foreigners deserve to die',
}


def test_every_rule_has_a_match_here():
  assert set(BAD) == {rule.name for rule in RULES}


@pytest.mark.parametrize('name', BAD)
def test_rules_match(name):
  (rule,) = matched(BAD[name])
  assert rule.name == name
  assert by_rules(BAD[name]) == 1 - rule.severity


@pytest.mark.parametrize(
  'text',
  [
    '',
    '🎉',
    'a @ b, x@y, @name',
    'task-oriented-dialogue-systems-and-more',
    '4111 + 1111 + 1111 = 6333, 123-45-6789',
    '14111 1111 1111 1111',
    'how to make a bowl of rice',
    'all cells should divide',
    'you can do it yourself',
    'the bomb was found in 1945',
  ],
)
def test_harmless_texts(text):
  assert by_rules(text) == 1.0


def test_the_worst_rule_counts():
  rules = (Rule('a', 'a', 0.25), Rule('b', 'b', 0.75))
  assert [by_rules(t, rules) for t in ('x', 'A', 'ab')] == [1.0, 0.75, 0.25]
  assert by_rules('anything', ()) == 1.0


def test_rules_are_data(tmp_path):
  rows = [{'name': 'no', 'pattern': r'\bno\b', 'severity': 0.5}, {'name': 'x', 'pattern': 'x+'}]
  (tmp_path / 'rules.json').write_text(json.dumps(rows))
  assert read(str(tmp_path / 'rules.json')) == (Rule('no', r'\bno\b', 0.5), Rule('x', 'x+', 1.0))


@pytest.mark.parametrize('text', ['', '{', '[1]', '[{"pattern": "x"}]', '[{"nome": "x"}]'])
def test_bad_files(tmp_path, text):
  (tmp_path / 'rules.json').write_text(text)
  with pytest.raises(UserError, match=r'cannot read safety rules from .*rules\.json'):
    read(str(tmp_path / 'rules.json'))
  with pytest.raises(UserError, match='cannot read safety rules'):
    read(str(tmp_path / 'none.json'))


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (('r', '('), "safety rule 'r'.*is no pattern"),
    (('r', None), 'is no pattern'),
    (('r', r'\SX'), 'has capitals'),
    (('r', 'x', 0.0), r'expected one in \(0, 1\]'),
    (('r', 'x', float('nan')), r'expected one in \(0, 1\]'),
    (('r', 'x', 'high'), r'expected one in \(0, 1\]'),
  ],
)
def test_bad_rules(rule, message):
  with pytest.raises(UserError, match=message):
    Rule(*rule)


def test_a_model_scores_in_one_call():
  calls = []

  def score(texts):
    calls.append(list(texts))
    return [0.9 if 'ok' in t else 0.1 for t in texts]

  texts = ['ok', 'odd', 'ok, kill yourself']
  assert by_model(texts, score) == [0.9, 0.1, 0.0]
  assert calls == [texts]
  assert by_model([], score) == []


@pytest.mark.parametrize('scores', [[float('nan')], [1.5], [None], ['safe']])
def test_what_a_model_may_not_say(scores):
  with pytest.raises(UserError, match='the safety model gave'):
    by_model(['a'], lambda texts: scores)
  with pytest.raises(UserError, match='2 scores for 1 texts'):
    by_model(['a'], lambda texts: [0.5, 0.5])
