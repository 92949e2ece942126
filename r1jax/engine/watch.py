"""Watches a completion while it is written, and says when its thought or itself must end.

A `Watcher` is a value, and `observe` a pure function of it, the new tokens and the clock. Its
answer is one of
  Continue(limit)      decode at most so many tokens, then observe them
  Force(at, ids, why)  drop what stands behind `at` tokens of the completion, append ids, go on
  End(at, ids, why)    drop what stands behind `at` tokens, append ids; the completion is whole
Of a burst within Continue.limit nothing is dropped, except behind a stop token and by a refusal. A
longer one may be observed too (speculative drafts): the tokens behind the decision are dropped as
if they had never been. But for the clock, actions do not depend on how the stream is cut. Observing
no tokens asks again: do so after Force, before the next token is paid for, and while a request
waits. With fallback 'refuse' nothing of an answer may be shown before its end.

Tags are matched over ids, so they may be one token or several; a tag half written when its time
comes is completed. Cost: no jax; of one core 2 to 6 µs a token in bursts of 16, 10 to 15 by itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from r1jax.core.errors import UserError
from r1jax.engine.budget import Action, Budget, Continue, End, Ended, Force, Marks, Used


@dataclasses.dataclass
class Watcher:
  """Where a completion stands. `observe` copies it; nothing else writes it.

  phase: how many of the tags are behind. matched: ids of the next tag that the completion ends in.
  """

  budget: Budget | None
  limit: int
  marks: Marks
  began: float
  phase: int = 0
  matched: int = 0
  written: int = 0
  answer_at: int = 0
  thinking: int = 0
  steps: int = 0
  tail: str = ''
  said: bool = False
  logps: tuple[float, ...] = ()
  seconds: float = 0.0
  thought: Ended | None = None
  ended: Ended | None = None
  cause: Ended | None = None

  @property
  def inside(self) -> int:
    """Tokens of the thought, a tag half written among them."""
    return self.thinking + self.matched if self.phase == 0 else self.thinking

  @property
  def used(self) -> Used:
    """The figures that go with the response."""
    return Used(
      self.ended, self.cause, self.thought, self.inside, self.steps + _open_step(self),
      self.written, self.seconds,
    )  # fmt: skip


def start(budget: Budget | None, limit: int, marks: Marks, now: float) -> Watcher:
  """The watcher of a completion of at most `limit` tokens; without a budget the limit just cuts."""
  if limit < 1:
    raise UserError(f'limit={limit}; expected 1 or more tokens of a completion')
  s = Watcher(budget, limit, marks, now)
  while s.phase < 2 and not marks.tags[s.phase]:
    s.phase += 1
  if budget is None:
    return s
  bounded = [n for n in ('thinking', 'steps', 'confidence') if getattr(budget, n) is not None]
  if s.phase > 0 and bounded:
    raise UserError(f'{bounded[0]} bounds a thought, and this model closes none: leave it out')
  if (kept := _kept(s)) >= limit:
    raise UserError(
      f'limit={limit} is all taken by the {kept} tokens kept for tags and answer '
      f'(reserve={budget.reserve}): raise limit, or lower reserve'
    )
  return s


def observe(
  s: Watcher, ids: Sequence[int], logps: Sequence[float], now: float, pace: float
) -> tuple[Watcher, Action]:
  """The watcher after the sampled `ids` at time `now`, and what to do.

  logps: their log-probabilities. pace: estimated seconds a token; 0 is unknown: where time is
  bounded one token is asked for, to measure it.
  """
  if s.ended:
    raise ValueError(f'this completion has ended ({s.ended}); nothing can follow')
  if len(ids) != len(logps):
    raise ValueError(f'{len(ids)} tokens with {len(logps)} log-probabilities; expected one each')
  s = dataclasses.replace(s, seconds=now - s.began)
  for token, logp in zip(ids, logps):
    if _due(s):
      break
    if token in s.marks.stops:
      s.written += 1
      return s, _end(s, 'stop')
    _write(s, token, logp)
  return s, _decide(s, now, pace)


def end(s: Watcher, why: Literal['stop', 'length', 'cancelled'], now: float) -> tuple[Watcher, End]:
  """Ends a completion for what is not seen here: a stop string, a caller who has gone."""
  s = dataclasses.replace(s, seconds=now - s.began)
  return s, _end(s, why)


# The stream: every token is written by itself, so that bursts leave no trace.


def _write(s: Watcher, token: int, logp: float) -> None:
  """One more token; those that can no longer begin the closing tag are the thought's."""
  s.written += 1
  tag = s.marks.tags[s.phase] if s.phase < 3 else ()
  before, s.matched = s.matched, _match(tag, s.matched, token)
  if s.phase == 0:
    for t in (*tag[:before], token)[: before + 1 - s.matched]:
      s.thinking += 1
      _read(s, t)
    if s.budget is not None and s.budget.confidence is not None:
      s.logps = (*s.logps, logp)[-s.budget.window :]
  if tag and s.matched == len(tag):
    _pass(s, 'stop')


def _match(tag: tuple[int, ...], matched: int, token: int) -> int:
  """Ids of `tag` that the stream ends in, when it ended in `matched` of them before `token`."""
  if matched < len(tag) and tag[matched] == token:
    return matched + 1
  seen = (*tag[:matched], token)
  return next((n for n in range(matched, 0, -1) if seen[-n:] == tag[:n]), 0)


def _read(s: Watcher, token: int) -> None:
  """Counts the step that the token's text ends, if any: one at most, so that it can be foreseen."""
  separator = s.budget.separator if s.budget else Budget.separator
  text = s.tail + s.marks.piece(token)
  if separator in text:
    before, _, text = text.rpartition(separator)
    s.steps += bool(s.said or before.replace(separator, '').strip())
    s.said = False
  cut = max(0, len(text) - len(separator) + 1)  # what lies before may not begin a separator
  s.said = s.said or bool(text[:cut].strip())
  s.tail = text[cut:]


def _open_step(s: Watcher) -> bool:
  """Whether the thought's last step has begun and no separator ends it."""
  return s.said or bool(s.tail.strip())


def _pass(s: Watcher, why: Ended) -> None:
  """The next tag is written, and with it those that the format lacks."""
  if s.phase == 0:
    s.thought = why
  s.phase, s.matched = s.phase + 1, 0
  if s.phase == 1 and not s.marks.tags[1]:
    s.phase = 2
  if s.phase < 3:
    s.answer_at = s.written


# The decisions.


def _kept(s: Watcher) -> int:
  """Tokens of the limit that the present part must leave to what has to follow it."""
  if s.budget is None:
    return 0
  close, opening, finish = map(len, s.marks.tags)
  closed = 0 if s.budget.fallback == 'cut' else finish
  match s.phase:
    case 0:
      return close + opening + s.budget.reserve + closed
    case 1:
      return opening + closed if closed else 0
    case 2:  # a refusal drops the answer and has its room
      return closed if s.budget.fallback == 'answer' else 0
    case _:
      return 0


def _room(s: Watcher) -> int:
  """Tokens that the present part may still have by the limit."""
  return s.limit - s.written - _kept(s)


def _due(s: Watcher) -> Ended | None:
  """Why the present part must end here, the clock apart."""
  b = s.budget
  if s.phase == 0 and b is not None:
    if b.thinking is not None and s.inside >= b.thinking:
      return 'thinking budget'
    if b.steps is not None and s.steps >= b.steps:
      return 'steps'
    if _looks(s, b) == 0 and math.exp(math.fsum(s.logps) / b.window) >= b.confidence:
      return 'confidence'
  return 'length' if _room(s) <= 0 else None


def _looks(s: Watcher, b: Budget) -> int | None:
  """Tokens until the confidence is looked at: 0 is now, None never."""
  if b.confidence is None:
    return None
  next_look = max(s.inside, b.least, b.window)
  return -(-next_look // b.stride) * b.stride - s.inside


def _left(s: Watcher, now: float, pace: float) -> float:
  """Tokens that can be computed in the time; as if there were one to spare where none can tell."""
  if s.budget is None or s.budget.seconds is None:
    return math.inf
  seconds = s.began + s.budget.seconds - now
  if seconds <= 0:
    return 0
  if pace <= 0:
    return 2 + max(1, s.budget.reserve) if s.phase == 0 else 1
  return math.floor(seconds / pace)


def _decide(s: Watcher, now: float, pace: float) -> Action:
  why, left, b = _due(s), _left(s, now, pace), s.budget
  if s.phase > 0 or b is None:
    why = why or ('time' if left < 1 else None)
    return _fall(s, why) if why else Continue(min(_room(s), left))
  if left < 2:  # one step computes the forced tags, one answers
    return _fall(s, 'time')
  spare = left - 1 - max(1, b.reserve)
  why = why or ('time' if spare < 1 else None)
  if why:
    return _force(s, why)
  bounds = [_room(s), spare]
  if b.thinking is not None:
    bounds.append(b.thinking - s.inside)
  if b.steps is not None:
    bounds.append(b.steps - s.steps)
  if (look := _looks(s, b)) is not None:
    bounds.append(look or b.stride)
  return Continue(min(bounds))


def _force(s: Watcher, why: Ended) -> Force:
  """Closes the thought and opens the answer."""
  at, ids = s.written, (*s.marks.tags[0][s.matched :], *s.marks.tags[1])
  s.written += len(ids)
  _pass(s, why)
  s.phase = 2
  return Force(at, ids, why)


def _fall(s: Watcher, why: Ended) -> End:
  """Limit or time are over: the fallback, unless the answer is whole."""
  fallback = s.budget.fallback if s.budget else 'cut'
  if fallback == 'cut' or s.phase == 3:
    return _end(s, why)
  if fallback == 'refuse' and s.phase > 0:
    s.written, s.matched = s.answer_at, 0
  at, tags = s.written, s.marks.tags[s.phase :]
  ids = tuple(i for tag in tags for i in tag)[s.matched :]
  s.written += len(ids)
  if s.phase == 0:
    s.thought = why
    s.matched = 0
  s.ended, s.cause = 'refused' if fallback == 'refuse' else why, why
  return End(at, ids, s.ended)


def _end(s: Watcher, why: Ended) -> End:
  """Ends where it is."""
  s.ended = s.cause = why
  return End(s.written, (), why)
