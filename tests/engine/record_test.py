"""What newly drawn tokens come to: stops, stop strings, budgets, all cut alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.engine.budget import Budget, End, Marks
from r1jax.engine.record import NOTHING, Drawn, Taken, complete, piece, start, take
from r1jax.engine.requests import Request
from r1jax.kernels.logprob.truncate import FILLER

CLOSE, OPEN, FINISH, STOP = 26, 27, 28, 3
MARKS = Marks(((CLOSE,), (OPEN,), (FINISH,)), frozenset((STOP,)), str)


def spell(ids):
  return ''.join(chr(ord('a') + i) for i in ids)


def made(limit=10, width=0, **fields):
  return start(Request((1, 2), limit, (0, 0), **fields), 5, 0.0, MARKS, spell, width)


def drawn(tokens, stop=False, sets=None):
  return Drawn(list(tokens), [-float(t) for t in tokens], sets, stop)


def test_tokens_stay_until_the_limit_which_is_an_end():
  r = made()
  assert take(r, 0, drawn(range(4)), 0.0, 0.0) == Taken([0, 1, 2, 3], [], None)
  assert take(r, 4, drawn(range(6)), 0.0, 0.0) == Taken(list(range(6)), [], End(10, (), 'length'))
  assert r.logp == [-0.0, -1, -2, -3, -0.0, -1, -2, -3, -4, -5]


def test_a_stop_token_ends_and_a_requests_own_cuts():
  assert take(made(), 0, drawn([1, STOP], stop=True), 0.0, 0.0).end == End(2, (), 'stop')
  taken = take(made(stop_tokens=(7,)), 2, drawn([1, 7, 8, 9]), 0.0, 0.0)
  assert taken == Taken([1, 7], [], End(4, (), 'stop'))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_a_stop_string_ends_at_the_same_token_however_tokens_come(tokens, burst):
  """The oracle: the shortest beginning whose text holds the stop string."""
  r, written = made(limit=100, stops=('abc', 'ca')), []
  end = None
  for at in range(0, len(tokens), burst):
    taken = take(r, len(written), drawn(tokens[at : at + burst]), 0.0, 0.0)
    written += taken.kept
    if end := taken.end:
      break
  text = spell(tokens)
  ends = [n for n in range(len(tokens) + 1) if 'abc' in text[:n] or 'ca' in text[:n]]
  assert (end is None) == (not ends)
  if ends:
    assert end == End(ends[0], (), 'stop') and written == tokens[: ends[0]]
    stop = 'abc' if text[: ends[0]].endswith('abc') else 'ca'
    assert r.reader.stop == stop and ''.join(r.said) == text[: ends[0] - len(stop)]


def test_a_thought_of_no_tokens_is_closed_before_any_is_paid_for():
  r = made(budget=Budget(thinking=0, reserve=2))
  assert take(r, 0, NOTHING, 0.0, 0.0) == Taken([], [CLOSE, OPEN], None)
  assert r.logp == [0.0, 0.0]


def test_forced_tags_may_complete_a_stop_string():
  r = made(budget=Budget(thinking=2, reserve=2), stops=(spell([CLOSE]),))
  taken = take(r, 0, drawn([5, 6]), 0.0, 0.0)
  assert taken == Taken([5, 6], [CLOSE], End(3, (), 'stop'))
  done, _ = complete(r, [5, 6, CLOSE], taken.end, None, spell)
  assert (done.text, done.stop, done.ended) == ('fg', spell([CLOSE]), 'stop')
  assert done.used.tokens == 3


def test_a_stop_that_only_the_engine_knows_ends_a_budget_too():
  r = made(budget=Budget(thinking=5, reserve=2), stop_tokens=(7,))
  taken = take(r, 0, drawn([5, 7]), 0.0, 0.0)
  assert taken.end == End(2, (), 'stop') and r.watcher.ended == 'stop'


def test_a_refusal_drops_the_answer_and_nothing_is_shown_before():
  budget = Budget(seconds=5.0, reserve=1, fallback='refuse')
  r = made(limit=20, budget=budget, stream=True)
  first = take(r, 0, drawn([5, CLOSE, OPEN, 8, 9]), 1.0, 0.1)
  assert first.kept == [5, CLOSE, OPEN, 8, 9] and piece(r, first) == []
  taken = take(r, 5, drawn([10]), 9.0, 0.1)
  assert taken.end == End(3, (FINISH,), 'refused')
  done, pieces = complete(r, [5, CLOSE, OPEN, 8, 9, 10], taken.end, None, spell)
  assert done.tokens.tolist() == [5, CLOSE, OPEN, FINISH]
  assert done.logp.tolist() == [-5, -CLOSE, -OPEN, 0]
  assert [p.tokens for p in pieces] == [tuple(done.tokens)] and pieces[0].text == done.text


def test_sets_and_routes_are_by_token_with_fillers_for_what_was_not_drawn():
  r = made(limit=6, width=2, budget=Budget(thinking=0, reserve=2))
  take(r, 0, NOTHING, 0.0, 0.0)
  taken = take(r, 2, drawn([8, STOP], True, np.array([[8, 1], [STOP, 2]])), 0.0, 0.0)
  routes = ((np.arange(1, 7).reshape(1, 6, 1), None),)
  routes = ((routes[0][0][:, :5], None),)
  done, _ = complete(r, [CLOSE, OPEN, 8, STOP], taken.end, routes, None)
  assert done.support.tolist() == [[FILLER] * 2, [FILLER] * 2, [8, 1], [STOP, 2]]
  assert done.routes[0][0].ravel().tolist() == [1, 2, 3, 4, 5, 0] and done.routes[0][1] is None


@pytest.mark.parametrize('stream', [True, False])
def test_pieces_are_given_where_they_are_asked_for(stream):
  r = made(stream=stream)
  pieces = piece(r, take(r, 0, drawn([5, 6]), 0.0, 0.0))
  assert [(p.tokens, p.text) for p in pieces] == ([((5, 6), 'fg')] if stream else [])


def test_a_stop_string_comes_before_a_bound_of_the_same_burst():
  """However the burst is cut, the answer is whole and its figures are those of a stop."""
  stop = spell([8, 9])
  for burst in (1, 5, 10):
    budget = Budget(reserve=4, fallback='refuse')
    r = made(limit=13, budget=budget, stops=(stop,))
    written, tokens = [], [5, CLOSE, OPEN, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    for at in range(0, len(tokens), burst):
      taken = take(r, len(written), drawn(tokens[at : at + burst]), 0.0, 0.0)
      written += taken.kept
      if taken.end:
        break
    assert (written, taken.end) == (tokens[:6], End(6, (), 'stop'))
    assert (r.watcher.used.ended, r.watcher.used.tokens) == ('stop', 6)
    done, _ = complete(r, written, taken.end, None, spell)
    assert (done.text, done.stop) == (spell(tokens[:4]), stop)


def test_a_requests_stop_token_counts_at_the_boundary_of_a_budget():
  r = made(budget=Budget(thinking=2, reserve=2), stop_tokens=(7,))
  assert take(r, 0, drawn([5, 7]), 0.0, 0.0) == Taken([5, 7], [], End(2, (), 'stop'))


def test_a_stop_string_in_the_last_token_of_the_limit_is_a_stop():
  r = made(limit=2, stops=(spell([6]),))
  taken = take(r, 0, drawn([5, 6]), 0.0, 0.0)
  assert taken.end == End(2, (), 'stop')
  assert complete(r, [5, 6], taken.end, None, spell)[0].text == 'f'


def test_nothing_can_follow_tags_that_fill_the_limit():
  r = made(limit=4, budget=Budget(thinking=2, reserve=0, fallback='cut'))
  taken = take(r, 0, drawn([5, 6]), 0.0, 0.0)
  assert taken.end == End(2, (CLOSE, OPEN), 'length') and r.watcher.used.ended == 'length'
