"""A request under way: what the scheduler does not keep, and what newly drawn tokens come to.

Whatever ends or cuts a completion meets here: stop tokens, stop strings, its budget. No
pages: `take` says which of the drawn tokens stay, what is written behind them for the model, and
whether that is the end.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from r1jax.engine import watch
from r1jax.engine.budget import Action, Continue, End, Force, Marks
from r1jax.engine.requests import Completion, Piece, Request
from r1jax.engine.stopping import Watch
from r1jax.engine.watch import Watcher
from r1jax.kernels.logprob.truncate import FILLER

FREE = 1 << 30  # tokens until a request is looked at again, if nothing bounds it
Decode = Callable[[list[int]], str]


@dataclasses.dataclass(eq=False)
class Record:
  """One request. cap: tokens that it may get before it is asked again. drafts: of its next round.

  width: ids that each token is drawn from at most, 0 where they are not kept. reader: its text,
  where that is wanted. said: text so far, news: of the last tokens. muted: a refusal may drop what
  is written, so that no piece is given out before the end.
  """

  request: Request
  number: int
  width: int = 0
  watcher: Watcher | None = None
  reader: Watch | None = None
  cap: int = FREE
  drafts: np.ndarray | None = None
  logp: list[float] = dataclasses.field(default_factory=list)
  support: list[np.ndarray] = dataclasses.field(default_factory=list)
  said: list[str] = dataclasses.field(default_factory=list)
  news: str = ''
  versions: tuple[int, int] | None = None

  @property
  def muted(self) -> bool:
    """Whether nothing is given out before the end."""
    budget = self.request.budget
    return budget is not None and budget.fallback == 'refuse'


class Drawn(NamedTuple):
  """New tokens of a row; stop: the last of them is one of the engine's stop tokens."""

  tokens: list[int]
  logp: list[float]
  support: np.ndarray | None
  stop: bool


class Taken(NamedTuple):
  """What became of them: these stay, those are written behind them, and the end if it is one."""

  kept: list[int]
  forced: list[int]
  end: End | None


NOTHING = Drawn([], [], None, False)


def start(
  request: Request,
  number: int,
  now: float,
  marks: Marks | None,
  decode: Decode | None,
  width: int,
  stops: tuple[int, ...] = (),
) -> Record:
  """The record of a request that was checked; UserError where its budget cannot be kept."""
  r = Record(request, number, width)
  if request.budget is not None:
    marks = dataclasses.replace(marks, stops=marks.stops.union(stops, request.stop_tokens))
    r.watcher = watch.start(request.budget, request.limit, marks, now)
  if decode is not None and (request.stops or request.stream):
    r.reader = Watch(request.stops, decode)
  return r


def take(r: Record, count: int, drawn: Drawn, now: float, pace: float) -> Taken:
  """Takes in what was drawn behind `count` tokens, r.cap at most; nothing asks the budget again.

  What the model itself ends comes first: a stop token or string, complete before a bound is
  reached, ends the request whatever else came in the same burst.
  """
  r.news = ''
  tokens, stop = _cut(r, drawn)
  if r.watcher:
    tokens, forced, action = _bounded(r, count, tokens, drawn, stop, now, pace)
  else:
    forced, action = [], End(count + len(tokens), (), 'stop') if stop else None
  end = action if isinstance(action, End) else None
  if end is None and count + len(tokens) + len(forced) >= r.request.limit:
    end = End(r.request.limit, (), 'length')
  if end:
    tokens = tokens[: max(0, end.at - count)]
  r.cap = action.limit if isinstance(action, Continue) else FREE
  taken = _read(r, count, Taken(tokens, forced, end), now)
  _note(r, taken, drawn)
  return taken


def _cut(r: Record, drawn: Drawn) -> tuple[list[int], bool]:
  """The tokens up to the first that ends the request, if one does; their text is read."""
  tokens, stop = drawn.tokens, drawn.stop
  own = next((i for i, t in enumerate(tokens) if t in r.request.stop_tokens), None)
  if own is not None:
    tokens, stop = tokens[: own + 1], True
  if r.reader and tokens:
    before = r.reader.fed
    said = r.reader.feed(tokens)
    r.news += said.text
    if said.ended:
      tokens, stop = tokens[: said.tokens - before], True
  return tokens, stop


def _bounded(
  r: Record, count: int, tokens: list[int], drawn: Drawn, stop: bool, now: float, pace: float
) -> tuple[list[int], list[int], Action]:
  """Tokens that the budget leaves, those that it writes behind them, and what it says then."""
  before, forced = r.watcher, []
  n = len(tokens)
  r.watcher, action = watch.observe(before, tokens, drawn.logp[:n], now, pace)
  if stop and r.watcher.ended != 'stop':  # a stop string, which it does not know
    r.watcher, action = watch.observe(before, tokens[:-1], drawn.logp[: n - 1], now, pace)
    if not isinstance(action, Continue):  # by the clock, in the same moment
      r.watcher = before
    r.watcher = dataclasses.replace(r.watcher, written=count + n)
    r.watcher, action = watch.end(r.watcher, 'stop', now)
  while isinstance(action, Force):
    tokens = tokens[: max(0, action.at - count)]
    if action.at + len(action.ids) >= r.request.limit:
      # reserve 0: nothing can be sampled behind the tags.
      ids = action.ids[: r.request.limit - action.at]
      r.watcher = dataclasses.replace(r.watcher, written=action.at + len(ids))
      r.watcher, _ = watch.end(r.watcher, 'length', now)
      return tokens, forced, End(action.at, ids, 'length')
    forced += action.ids
    r.watcher, action = watch.observe(r.watcher, (), (), now, pace)
  return tokens, forced, action


def _read(r: Record, count: int, taken: Taken, now: float) -> Taken:
  """Reads the text of what is written for the model; a stop string may be complete in it, too."""
  kept, forced, end = taken
  if r.reader is None or (end and end.at < count + len(kept)):  # a refusal is read as a whole
    return taken
  news = [*forced, *(end.ids if end else ())]
  before = r.reader.fed
  said = r.reader.feed(news)
  n = said.tokens - before
  r.news += said.text
  if end and not said.ended:
    r.news += r.reader.flush().text
  r.said += [r.news] if r.news else []
  if not said.ended or n >= len(news):
    return taken
  if r.watcher:
    watcher = dataclasses.replace(r.watcher, written=count + len(kept) + n)
    r.watcher, _ = watch.end(watcher, 'stop', now)
  return Taken(kept, news[:n], End(count + len(kept) + n, (), 'stop'))


def _note(r: Record, taken: Taken, drawn: Drawn) -> None:
  """Keeps the numbers of what stays; forced tokens have none."""
  n, more = len(taken.kept), len(taken.forced)
  if not n + more:
    return
  r.logp += [*drawn.logp[:n], *[0.0] * more]
  if r.width:
    sets = [] if drawn.support is None else [drawn.support[:n]]
    r.support += [*sets, np.full((more, r.width), FILLER, np.int32)]


def piece(r: Record, taken: Taken) -> list[Piece]:
  """What of it is given out at once."""
  if not r.request.stream or r.muted:
    return []
  tokens = (*taken.kept, *taken.forced, *(taken.end.ids if taken.end else ()))
  return [Piece(r.number, tokens, r.news)] if tokens or r.news else []


def complete(
  r: Record, written: Sequence[int], end: End, routes: tuple | None, decode: Decode | None
) -> tuple[Completion, list[Piece]]:
  """What is handed out: without what a refusal dropped, with what closes it; a muted one's piece.

  routes are those of the prompt and all that was written, as far as it was read.
  """
  kept = min(end.at, len(written))
  tokens = [*written[:kept], *end.ids]
  logp = [*r.logp[:kept], *[0.0] * len(end.ids)]
  sets = None
  if r.width:
    sets = np.full((len(tokens), r.width), FILLER, np.int32)
    sets[:kept] = np.concatenate([*r.support, sets[:0]])[:kept]
  text, pieces = None, []
  if r.reader and kept == len(written):
    text = ''.join(r.said)
  elif decode:  # not read before, or a refusal: what was read is not what is handed out
    text = decode(tokens)
  if r.request.stream and r.muted:
    pieces = [Piece(r.number, tuple(tokens), text or '')]
  length = len(r.request.prompt) + len(tokens)

  def whole(ids_nLA: np.ndarray) -> np.ndarray:
    made = np.zeros((ids_nLA.shape[0], length, ids_nLA.shape[2]), np.int32)
    read = min(ids_nLA.shape[1], len(r.request.prompt) + kept)
    made[:, :read] = ids_nLA[:, :read]
    return made

  return Completion(
    r.number, np.array(tokens, np.int32), np.array(logp, np.float32), end.why,
    None if routes is None else jax.tree.map(whole, routes),
    sets,
    r.watcher.used if r.watcher else None,
    r.versions,
    text,
    r.reader.stop if r.reader else None,
  ), pieces  # fmt: skip
