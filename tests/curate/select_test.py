"""Which samples are kept, and the rows that they become."""

import collections

import hypothesis
import hypothesis.strategies as st

from r1jax.core.text import render
from r1jax.curate.select import kept, label_rows, pair_rows, sample_rows
from r1jax.tasks.task import Outcome

RIGHT, WRONG, NONE, LATE = Outcome
A, B, C = render('1+1=2', '2'), render('two', '2'), render('?', '3')


def test_of_the_correct_ones_the_whole_well_formed_and_different_are_kept(answers):
  given = answers(
    (A, RIGHT, True), (C, WRONG, True), (A, RIGHT, True), ('2', RIGHT, True), (B, RIGHT, False),
    (B, RIGHT, True),
  )  # fmt: skip
  assert [s.text for s in kept(given, 'correct', None)] == [A, B]
  assert [s.text for s in kept(given, 'correct', 1)] == [A]
  assert [s.text for s in kept(given, 'all', None)] == [A, C, '2', B]


def test_a_sample_as_a_row(answers):
  given = answers((A, RIGHT, True), ('no tags', NONE, False))
  first, second = sample_rows(given, kept(given, 'all', None))
  assert first == {
    'question': '1 + 1', 'completion': A, 'thought': '1+1=2', 'answer': '2', 'reward': 1.0,
    'outcome': 'correct', 'length': 2,
  }  # fmt: skip
  assert second == {
    'question': '1 + 1', 'completion': 'no tags', 'reward': 0.0, 'outcome': 'unparseable',
    'length': 2,
  }  # fmt: skip
  spoken = answers((A, RIGHT, True), system='Add.')
  assert sample_rows(spoken, spoken.samples)[0]['system'] == 'Add.'


def test_pairs_and_labels_leave_the_undecided_and_the_cut_out(answers):
  given = answers((C, WRONG, True), (A, RIGHT, True), ('late', LATE, True), ('x', NONE, False))
  assert pair_rows(given, None) == [{'question': '1 + 1', 'chosen': A, 'rejected': C}]
  assert label_rows(given, None) == [
    {'question': '1 + 1', 'completion': C, 'label': 0.0},
    {'question': '1 + 1', 'completion': A, 'label': 1.0},
  ]
  assert pair_rows(answers((A, RIGHT, True), (B, RIGHT, True)), None) == []


SAMPLES = st.lists(st.tuples(st.sampled_from('abcdef'), st.sampled_from(Outcome), st.booleans()))


@hypothesis.given(SAMPLES, st.none() | st.integers(1, 3))
def test_a_pair_is_right_over_wrong_and_no_text_is_used_twice(answers, samples, at_most):
  first = {}  # a text's grade is that of its first whole sample
  for text, outcome, stopped in samples:
    if stopped:
      first.setdefault(text, outcome)
  pairs = pair_rows(answers(*samples), at_most)
  assert all(first[p['chosen']] is RIGHT for p in pairs)
  assert all(first[p['rejected']] in (WRONG, NONE) for p in pairs)
  used = collections.Counter(p[side] for p in pairs for side in ('chosen', 'rejected'))
  assert max(used.values(), default=1) == 1
  count = collections.Counter(first.values())
  most = min(count[RIGHT], count[WRONG] + count[NONE])
  assert len(pairs) == (most if at_most is None else min(most, at_most))
