"""Splits: disjoint, without repeats, independent of who asks first, and their ends."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.tasks.splits import Splits, digest, split_of


def question(i):
  return f'question {i % 5000}'


def questions(splits, name, count, start=0):
  return [question(i) for i in splits.indices(name, start, count)]


def test_digest_is_the_same_in_every_process():
  assert digest('4 + 3 - 2') == 0x6C75D6E7ED16F066
  assert [split_of(f'question {i}') for i in range(8)] == [
    'rl',
    'rl',
    'rl',
    'rl',
    'eval',
    'rl',
    'rl',
    'rl',
  ]


@given(st.text())
def test_every_question_has_one_split(text):
  assert split_of(text) in ('sft', 'rl', 'eval')


def test_shares():
  count = collections.Counter(split_of(str(i)) for i in range(8000))
  assert count['eval'] == pytest.approx(1000, abs=120)
  assert count['sft'] == pytest.approx(1000, abs=120)


def test_disjoint_and_without_repeats():
  splits = Splits(question)
  parts = {s: questions(splits, s, 500) for s in ('sft', 'rl', 'eval')}
  assert all(split_of(q) == s for s, qs in parts.items() for q in qs)
  assert len(set(parts['sft'])) == len(set(parts['eval'])) == 500


@given(st.permutations([('sft', 40), ('rl', 300), ('eval', 20), ('eval', 60), ('sft', 5)]))
def test_order_of_asking_does_not_matter(asked):
  splits, fresh = Splits(question), Splits(question)
  for name, count in asked:
    splits.indices(name, 0, count)
  for name in ('eval', 'sft', 'rl'):
    assert splits.indices(name, 3, 20) == fresh.indices(name, 0, 23)[3:]


def test_few_questions_end_eval_and_sft_but_not_rl():
  splits = Splits(lambda i: f'question {i % 40}')
  found = {s: splits.indices(s, 0, 1000) for s in ('sft', 'eval', 'rl')}
  texts = {f'question {i}' for i in range(40)}
  assert len(found['sft']) + len(found['eval']) == sum(split_of(t) != 'rl' for t in texts)
  assert len(found['rl']) == 1000
  assert splits.indices('eval', 0, 1000) == found['eval']


def test_finite_streams_end_and_rl_starts_again():
  splits = Splits(str, size=100)
  whole = [i for i in range(100) if split_of(str(i)) == 'rl']
  assert splits.indices('rl', 0, 2 * len(whole) + 1) == [*whole, *whole, whole[0]]
  assert splits.indices('eval', 0, 99) == [i for i in range(100) if split_of(str(i)) == 'eval']
  assert splits.indices('eval', 99, 5) == []
  assert Splits(str, size=0).indices('rl', 0, 3) == []


def test_bad_requests():
  with pytest.raises(UserError, match="'test' is unknown; expected one of sft, rl, eval"):
    Splits(str).indices('test', 0, 1)
  with pytest.raises(UserError, match='must not be negative'):
    Splits(str).indices('rl', -1, 1)
