"""Budgets are met exactly, whatever the stream holds and however it is cut into bursts."""

import dataclasses
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.core.text import spans
from r1jax.engine.budget import Budget, Continue, End, Force, Marks, marks
from r1jax.engine.watch import end, observe, start
from r1jax.tokenizers.byte import ByteTokenizer

TOK = ByteTokenizer()
CLOSE, OPEN, FINISH = (TOK.encode_special(t)[0] for t in ('</think>', '<answer>', '</answer>'))

# A vocabulary of eight: texts, then ids of which tags are made, then the stop.
PIECES = ('a', '\n', 'b\n', ' ', '<', '/', '>', '')
STOP = 7
SINGLE = ((4,), (5,), (6,))
LONG = ((4, 4, 5), (4, 6), (4, 5, 4, 6))  # of ids that repeat, so that a match may fall back
BARE = ((4, 5), (), ())
TAGS = (SINGLE, LONG, BARE, ((4,), (), (6, 5)))


def small(tags):
  return Marks(tags, frozenset({STOP}), PIECES.__getitem__)


def drive(budget, limit, mark, stream, bursts=(1,), over=0, logps=None):
  """(completion, its actions but Continue, what it used) of a model that says stream[position].

  bursts: their lengths in turn, cut to the watcher's limit, or to `over` tokens more.
  """
  logps = logps or [-1.0] * len(stream)
  s, written, done, i = start(budget, limit, mark, 0.0), [], [], 0
  s, action = observe(s, (), (), 0.0, 0.0)
  while True:
    if isinstance(action, Continue):
      assert action.limit >= 1
      at, n = len(written), min(bursts[i % len(bursts)], action.limit + over)
      written, i = written + list(stream[at : at + n]), i + 1
      s, action = observe(s, written[at:], logps[at : at + n], 0.0, 0.0)
      if not over and isinstance(action, (Continue, Force)):
        kept = action.at if isinstance(action, Force) else s.written
        assert kept == len(written), 'within the limit nothing is dropped'
    else:
      done.append(action)
      written = written[: action.at] + list(action.ids)
      if isinstance(action, End):
        assert len(written) == s.written
        return written, done, s.used
      s, action = observe(s, (), (), 0.0, 0.0)


def find(ids, tag):
  """Where the tag first ends."""
  return next((i for i in range(len(tag), len(ids) + 1) if tuple(ids[i - len(tag) : i]) == tag), 0)


def thought_of(ids, close):
  """The ids without those at the end that may begin the tag."""
  half = (n for n in range(len(close) - 1, 0, -1) if tuple(ids[-n:]) == close[:n])
  return ids[: len(ids) - next(half, 0)]


def first_decision(b, limit, tags, stream, logps):
  """(tokens, why) at which the thought is closed for the model, by brute force; else None."""
  kept = b.reserve + len(tags[0]) + len(tags[1]) + (b.fallback != 'cut') * len(tags[2])
  for n in range(limit + 1):
    ids = stream[:n]
    if STOP in ids or find(ids, tags[0]):
      return None
    *ended, _ = ''.join(PIECES[i] for i in thought_of(ids, tags[0])).split(b.separator)
    if b.thinking is not None and n >= b.thinking:
      return n, 'thinking budget'
    if b.steps is not None and sum(bool(text.strip()) for text in ended) >= b.steps:
      return n, 'steps'
    looked = b.confidence is not None and n >= max(b.least, b.window) and n % b.stride == 0
    if looked and math.exp(math.fsum(logps[n - b.window : n]) / b.window) >= b.confidence:
      return n, 'confidence'
    if n + kept >= limit:
      return n, 'length'


STREAMS = st.lists(st.sampled_from((0, 0, 1, 2, 3, 4, 4, 5, 6)), min_size=60, max_size=60).flatmap(
  lambda ids: st.integers(0, 120).map(lambda at: [*ids[:at], STOP, *ids[at:]][:60])
)
BUDGETS = st.builds(
  Budget,
  thinking=st.none() | st.integers(0, 40),
  steps=st.none() | st.integers(0, 8),
  confidence=st.none() | st.floats(0.05, 0.9),
  reserve=st.integers(0, 12),
  fallback=st.sampled_from(('answer', 'cut', 'refuse')),
  separator=st.sampled_from(('\n', '\n\n')),
  window=st.integers(1, 6),
  least=st.integers(0, 12),
  stride=st.integers(1, 5),
)
LOGPS = st.lists(st.sampled_from((-0.01, -0.3, -1.2, -4.0)), min_size=60, max_size=60)
BURSTS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(
  BUDGETS, st.integers(1, 60), st.sampled_from(TAGS), STREAMS, LOGPS, BURSTS, st.integers(0, 9)
)
def test_budgets_are_met_exactly_however_the_stream_is_cut(
  b, limit, tags, stream, logps, cuts, over
):
  closing = sum(map(len, tags[: 2 if b.fallback == 'cut' else 3]))
  assume(b.reserve + closing < limit)
  ids, done, used = drive(b, limit, small(tags), stream, logps=logps)
  assert len(ids) == used.tokens <= limit
  assert b.thinking is None or used.thinking <= b.thinking
  assert b.steps is None or used.steps <= b.steps
  *forced, last = done
  assert isinstance(last, End) and last.why == used.ended
  wanted = first_decision(b, limit, tags, stream, logps)
  assert [(f.at, f.why) for f in forced] == ([wanted] if wanted else [])
  if wanted:
    at, why = wanted
    behind = at + len(forced[0].ids)
    assert used.thought == why and ids[:at] == stream[:at]
    # The tags stand once, the thought closed for the first time; the reserve is the answer's.
    assert find(ids[:behind], tags[0]) == behind - len(tags[1])
    assert tuple(ids[behind - len(tags[1]) : behind]) == tags[1]
    assert used.thinking == behind - len(tags[0]) - len(tags[1])
    assert used.ended in ('stop', 'refused') or used.tokens - behind >= b.reserve
  # Neither the cut nor tokens that run past a decision leave a trace.
  assert drive(b, limit, small(tags), stream, cuts, logps=logps) == (ids, done, used)
  assert drive(b, limit, small(tags), stream, cuts, over, logps=logps) == (ids, done, used)


@given(BUDGETS, st.integers(24, 60), st.sampled_from((SINGLE, LONG, TAGS[3])), STREAMS)
def test_what_length_ends_is_closed_once_or_cut_or_refused(b, limit, tags, stream):
  stream = [i for i in stream if i != STOP] + [0]
  ids, done, used = drive(b, limit, small(tags), stream)
  answer_at = find(ids, tags[0]) + find(ids[find(ids, tags[0]) :], tags[1])
  whole = bool(find(ids[answer_at:], tags[2]))
  assert used.cause == 'length'
  if b.fallback == 'cut':
    assert used.ended == 'length' and len(ids) == limit and not done[-1].ids
  elif b.fallback == 'answer':
    assert used.ended == 'length' and whole
    assert limit - len(tags[2]) <= len(ids) <= limit
  elif used.ended == 'refused':
    assert tuple(ids[answer_at:]) == tags[2]
  else:
    assert whole and len(ids) == limit


def byte_run(budget, limit, text, mark=None):
  """The completion's text of a model that writes `text`, markers as one id each."""
  for i, marker in enumerate(('</think>', '<answer>', '</answer>')):
    text = text.replace(marker, chr(1 + i))
  tags = {1: CLOSE, 2: OPEN, 3: FINISH, 4: TOK.eos}
  stream = [tags.get(ord(c), ord(c)) for c in text]
  ids, done, used = drive(budget, limit, mark or marks(TOK), stream, (16,))
  return TOK.decode(ids), done, used


def test_a_thought_of_the_budget_and_then_an_answer():
  text, done, used = byte_run(Budget(thinking=5, reserve=8), 30, 'abcdefg4</answer>\x04')
  # The model speaks by position: behind five letters and two tags its own eighth token follows.
  assert text == 'abcde</think><answer>4</answer>'
  assert done == [Force(5, (CLOSE, OPEN), 'thinking budget'), End(10, (), 'stop')]
  assert used == ('stop', 'stop', 'thinking budget', 5, 1, 10, 0.0)


def test_a_model_that_closes_in_time_is_left_alone():
  said = 'so</think><answer>4</answer>\x04'
  for budget in (None, Budget(thinking=3, reserve=8), Budget(thinking=2, reserve=8)):
    text, done, used = byte_run(budget, 30, said)
    if budget and budget.thinking == 2:  # its own tag would be the third token
      assert used.thought == 'thinking budget'
    else:
      assert done == [End(7, (), 'stop')] and used.thought == 'stop' and used.thinking == 2
    assert text == 'so</think><answer>4</answer>'


def test_without_a_budget_the_limit_just_cuts():
  text, done, used = byte_run(None, 4, 'abcdefgh')
  assert text == 'abcd' and done == [End(4, (), 'length')]
  assert used.thought is None and used.thinking == 4


def test_limit_falls_back():
  said = 'a</think><answer>12345678'
  want = {'answer': '1234</answer>', 'cut': '12345', 'refuse': '</answer>'}
  for fallback, answer in want.items():
    text, _, used = byte_run(Budget(reserve=2, fallback=fallback), 8, said)
    assert text == f'a</think><answer>{answer}'
    assert used.ended == ('refused' if fallback == 'refuse' else 'length')
    assert used.cause == 'length' and used.tokens == len(answer.replace('</answer>', '~')) + 3


def test_an_answer_that_is_whole_is_not_refused():
  text, _, used = byte_run(
    Budget(reserve=2, fallback='refuse'), 8, 'a</think><answer>4</answer>....'
  )
  assert text == 'a</think><answer>4</answer>...' and used.ended == 'length'
  assert spans('<think>' + text).answer == '4'
  # The room of its closing tag is its own until the limit.
  *_, used = byte_run(Budget(reserve=2, fallback='refuse'), 8, 'a</think><answer>1234</answer>')
  assert used.ended == 'length' and used.tokens == 8


def test_an_answer_without_an_opening_tag_can_be_whole():
  mark, stream = small(((4,), (), (6,))), [0, 4, 0, 6, 0, 0, 0, 0]
  assert drive(Budget(reserve=2), 8, mark, stream)[:2] == (stream, [End(8, (), 'length')])


def test_an_answer_that_does_not_begin_is_closed_within_the_limit():
  for fallback in ('answer', 'refuse'):
    text, _, used = byte_run(Budget(reserve=2, fallback=fallback), 8, 'a</think>' + '?' * 9)
    between = '????' if fallback == 'answer' else ''
    assert text == f'a</think>{between}<answer></answer>' and used.tokens <= 8


def test_a_tag_half_written_is_completed():
  plain = Marks(
    tuple(tuple(t.encode()) for t in ('</think>', '<answer>', '</answer>')), frozenset(), chr
  )
  run = lambda said, **b: drive(Budget(**b), 60, plain, list(said.encode()) + [46] * 60)
  ids, done, used = run('ab</thi', thinking=5, reserve=4)
  assert bytes(ids).startswith(b'ab</think><answer>..')
  assert done[0] == Force(5, tuple(b'hink><answer>'), 'thinking budget')
  assert used.thinking == 2 and used.steps == 1
  ids, _, used = run('ab<<//thinking', thinking=5, reserve=4)  # the second '<' may begin it
  assert bytes(ids).startswith(b'ab<</think><answer>') and used.thinking == 3
  ids, _, used = run('a</th</think>4', thinking=40, reserve=4)
  assert bytes(ids).startswith(b'a</th</think>4') and used.thinking == 5
  ids, done, _ = run('</think><answer>' + '7' * 31 + '</answer>', reserve=4)
  assert bytes(ids) == b'</think><answer>' + b'7' * 31 + b'</answer>'
  assert done == [End(51, tuple(b'swer>'), 'length')]


def test_steps_are_lines_that_are_not_blank():
  said = 'one\n\n  \ntwo\nthree\nfour'
  _, done, used = byte_run(Budget(steps=2, reserve=4), 60, said + '.' * 60)
  assert done[0].at == len('one\n\n  \ntwo\n') and done[0].why == 'steps' and used.steps == 2
  *_, used = byte_run(Budget(reserve=4), 60, 'one\n\ntwo</think>4\x04')
  assert used.steps == 2 and used.thought == 'stop'
  *_, used = byte_run(Budget(reserve=4), 60, '\n \n</think>4\n5\x04')
  assert used.steps == 0
  *_, used = byte_run(Budget(steps=1, reserve=4, separator='Step'), 60, 'StepaStepb' + '.' * 60)
  assert used.steps == 1 and used.thinking == len('StepaStep')


def test_the_opening_tag_is_no_step():
  opening = TOK.encode_special('<think>')
  *_, used = drive(Budget(reserve=4), 20, marks(TOK), [*opening, 10, 97, 10, CLOSE, TOK.eos])
  assert used.steps == 1 and used.thinking == 4


def test_confidence_is_the_geometric_mean_of_the_window():
  sure, unsure = math.log(0.9), math.log(0.5)
  b = Budget(confidence=0.89, window=4, least=6, stride=2, reserve=4)
  stream = [97] * 60
  at = lambda logps: drive(b, 40, marks(TOK), stream, (7,), logps=logps)[1][0]
  assert at([sure] * 60) == Force(6, (CLOSE, OPEN), 'confidence')
  assert at([unsure] * 5 + [sure] * 55).at == 10  # the fifth leaves the window at 9: looked at 10
  assert at([unsure] * 60).why == 'length'
  assert at([0.0, math.log(0.7)] * 30).why == 'length'  # √0.7 = 0.84


def clocked(budget, limit, pace, hint=None, late=0.0, burst=16, close_at=None):
  """(ids, actions, end) where each token takes `pace` seconds, and so does computing forced ids."""
  now, ids, done = late, [], []
  s = start(budget, limit, marks(TOK), 0.0)
  s, action = observe(s, (), (), now, pace if hint is None else hint)
  while not done or not isinstance(done[-1], End):
    new = []
    if isinstance(action, Continue):
      n = min(burst, action.limit)
      new = [CLOSE if len(ids) + i == close_at else 97 for i in range(n)]
      ids, now = ids + new, now + n * pace
    else:
      done.append(action)
      ids = ids[: action.at] + list(action.ids)
      now += pace * isinstance(action, Force)
    if not isinstance(action, End):
      s, action = observe(s, new, [-1.0] * len(new), now, pace)
  assert s.used.seconds == now and s.used.tokens == len(ids)
  return ids, done, now, s.used


@given(st.floats(0.01, 3), st.floats(0.001, 1), st.integers(0, 30), st.integers(1, 20))
def test_the_answer_has_its_reserve_before_the_time_is_over(seconds, pace, reserve, burst):
  b = Budget(seconds=seconds, reserve=reserve)
  tokens = math.floor(seconds / pace)
  assume(abs(tokens - seconds / pace) > 1e-6 and tokens < 900)
  ids, done, now, used = clocked(b, 1000, pace, burst=burst)
  assert now <= seconds + 1e-9 and used.cause == 'time'
  assert ids[-1] == FINISH and ids.count(CLOSE) == ids.count(OPEN) == 1
  if tokens >= 2:
    # Rounding may cost a token, where floor meets a sum of many paces.
    assert len(done) == 2 and done[0].why == used.thought == 'time'
    answer = len(ids) - 3 - used.thinking
    assert min(reserve, tokens - 1) - 1 <= answer <= max(reserve + 1, tokens - 1)
    assert tokens - 2 <= used.thinking + answer + 1 <= tokens
  else:
    assert len(done) == 1 and used.thinking == 0


def test_time_falls_back():
  # Two seconds are twenty tokens; the model closes its thought itself at the third.
  for fallback in ('answer', 'cut', 'refuse'):
    b = Budget(seconds=2.05, reserve=4, fallback=fallback)
    ids, _, now, used = clocked(b, 99, 0.1, close_at=2)
    assert used.thought == 'stop' and used.cause == 'time' and round(now, 6) == 2.0
    assert used.ended == ('refused' if fallback == 'refuse' else 'time')
    behind = {'answer': [97] * 17 + [OPEN, FINISH], 'cut': [97] * 17, 'refuse': [OPEN, FINISH]}
    assert ids == [97, 97, CLOSE, *behind[fallback]]


def test_a_request_that_comes_too_late():
  want = {'answer': ((CLOSE, OPEN, FINISH), 'time'), 'cut': ((), 'time'),
          'refuse': ((CLOSE, OPEN, FINISH), 'refused')}  # fmt: skip
  for fallback, (ids, why) in want.items():
    b = Budget(seconds=1.0, reserve=4, fallback=fallback)
    assert clocked(b, 99, 0.1, late=1.5)[1] == [End(0, ids, why)]


def test_a_stall_in_the_thought():
  plain = Marks(
    tuple(tuple(t.encode()) for t in ('</think>', '<answer>', '</answer>')), frozenset(), chr
  )
  behind = tuple(b'hink><answer></answer>')
  want = {'answer': (behind, 'time', 2), 'cut': ((), 'time', 5), 'refuse': (behind, 'refused', 2)}
  for fallback, (ids, why, thinking) in want.items():
    s = start(Budget(seconds=1.0, fallback=fallback), 99, plain, 0.0)
    s, action = observe(s, tuple(b'ab</t'), [-1.0] * 5, 1.5, 0.1)
    assert action == End(5, ids, why) and s.used.cause == 'time'
    assert s.used.thinking == thinking and s.used.thought == ('time' if ids else None)


def test_the_limit_of_a_burst_is_the_nearest_decision():
  b = Budget(thinking=20, steps=3, confidence=0.99, window=4, least=6, stride=5, reserve=4)
  s = start(b, 60, marks(TOK), 0.0)
  limits = []
  for text in ('', 'a', '\n', 'bc\n', 'defgh', 'ijkl', 'm', 'n'):
    s, action = observe(s, text.encode(), [-1.0] * len(text), 0.0, 0.0)
    limits.append(action.limit)
  assert limits == [3, 3, 2, 1, 1, 1, 1, 1]
  s = start(dataclasses.replace(b, steps=None), 60, marks(TOK), 0.0)
  limits = []
  for n in (0, 3, 7, 2, 3, 4):
    s, action = observe(s, [97] * n, [-1.0] * n, 0.0, 0.0)
    limits.append(action.limit)
  assert limits == [10, 7, 5, 3, 5, 1]


def test_an_unknown_pace_is_measured_by_one_token():
  s = start(Budget(seconds=1.0, reserve=4), 99, marks(TOK), 0.0)
  s, action = observe(s, (), (), 0.0, 0.0)
  assert action == Continue(1)
  s, action = observe(s, [97], [-1.0], 0.1, 0.1)
  assert action == Continue(9 - 1 - 4)
  s, action = observe(s, [CLOSE], [-1.0], 0.2, 0.0)
  assert action == Continue(1)


def test_thought_and_time_share_the_limit_and_the_smaller_wins():
  s = start(Budget(thinking=90, reserve=90), 99, marks(TOK), 0.0)
  assert observe(s, (), (), 0.0, 0.0)[1] == Continue(99 - 90 - 3)


def test_a_watcher_is_a_value():
  s = start(Budget(thinking=5, reserve=8), 30, marks(TOK), 0.0)
  twice = [observe(s, [97] * 5, [-1.0] * 5, 1.0, 0.1) for _ in range(2)]
  assert twice[0] == twice[1] and s.used.tokens == 0


def test_ends_from_outside_and_misuse():
  s = start(None, 30, marks(TOK), 2.0)
  s, _ = observe(s, [97], [-1.0], 3.0, 0.1)
  s, action = end(s, 'cancelled', 5.0)
  assert action == End(1, (), 'cancelled')
  assert s.used == ('cancelled', 'cancelled', None, 1, 1, 1, 3.0)
  with pytest.raises(ValueError, match='has ended \\(cancelled\\)'):
    observe(s, [97], [-1.0], 6.0, 0.1)
  with pytest.raises(ValueError, match='2 tokens with 1 log-prob'):
    observe(start(None, 30, marks(TOK), 0.0), [97, 98], [-1.0], 0.0, 0.1)


@pytest.mark.parametrize(
  'field, given_, words',
  [
    ('thinking', -1, 'thinking=-1; expected 0 or more'),
    ('steps', -2, 'steps=-2; expected 0 or more'),
    ('reserve', -1, 'reserve=-1; expected 0 or more'),
    ('window', 0, 'window=0; expected 1 or more'),
    ('stride', 0, 'stride=0; expected 1 or more'),
    ('confidence', 1.5, 'expected a probability'),
    ('confidence', math.nan, 'expected a probability'),
    ('seconds', 0.0, 'expected a finite time'),
    ('seconds', math.inf, 'expected a finite time'),
    ('separator', '', 'expected the text that ends a step'),
    ('fallback', 'maybe', 'expected answer, cut or refuse'),
  ],
)
def test_a_wrong_field_is_named(field, given_, words):
  with pytest.raises(ValueError, match=words) as error:
    Budget(**{field: given_})
  assert '\n' not in str(error.value)


def test_what_fits_no_limit_or_no_model_is_refused_at_the_start():
  with pytest.raises(UserError, match='limit=35 is all taken by the 35 tokens kept') as e:
    start(Budget(), 35, marks(TOK), 0.0)
  assert '\n' not in str(e.value)
  assert start(Budget(), 36, marks(TOK), 0.0).limit == 36
  with pytest.raises(UserError, match='limit=0; expected 1 or more'):
    start(None, 0, marks(TOK), 0.0)
  with pytest.raises(UserError, match='steps bounds a thought, and this model closes none'):
    start(Budget(steps=3), 99, small(((), (), ())), 0.0)


def test_a_model_without_tags_has_time_and_length_alone():
  ids, done, used = drive(Budget(fallback='refuse'), 9, small(((), (), ())), [0] * 60, (4,))
  assert ids == [] and done == [End(0, (), 'refused')] and used.thinking == 0


def test_marks_without_answer_tags_force_the_thought_alone():
  mark = marks(TOK, answer_tags=False)
  text, done, _ = byte_run(Budget(thinking=2, reserve=3), 8, 'abcdefghi', mark)
  assert text == 'ab</think>defgh' and done == [
    Force(2, (CLOSE,), 'thinking budget'), End(8, (), 'length')]  # fmt: skip


def test_a_budget_is_a_config():
  b = config.override(Budget(), 'thinking', '512')
  assert b.thinking == 512 and config.from_json(Budget, config.to_json(b)) == b
