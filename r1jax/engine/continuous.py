"""Continuous batching on the trainer's own parameters: requests in, completions out.

    engine = Continuous(cfg, stops, Config(slots=16, pages=256, page=16, longest=512))
    engine.load(params)
    for done in engine.generate(requests): …          in the order of ending

Sequences join and leave between bursts (scheduler.py decides, steps.py computes); prompts with a
common beginning share its pages, a group's prompt is computed once. Weights are used as they lie,
or moved to the engine's mesh (place.onto); a new version of them makes all cached prefixes invalid.
Tokens, log-probabilities and expert choices are those of `generate.generate` with the same keys:
which slot, which chunks, which neighbours, preempted or not, drafted or not, does not enter.

A request may have a budget (budget.py), stop strings and stop tokens, and be streamed. What cannot
be served is `Failed` by itself. On a mesh the rows and pages are split over its batch axes
(shards.py), heads and experts as in training; every process makes the same calls.

Host work is O(slots and their pages) a burst; `seconds` has it (`host`) apart from calls of the
compiled steps and what was waited for.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.program import Announce, silent
from r1jax.engine import buckets, drafts, inputs, record, requests, steps
from r1jax.engine.budget import End, Marks
from r1jax.engine.device import Device
from r1jax.engine.drafts import Drafting
from r1jax.engine.plan import Chunk, Config, Plan
from r1jax.engine.plan import Request as Place
from r1jax.engine.record import NOTHING, Decode, Drawn, Record
from r1jax.engine.requests import Completion, Event, Failed, Piece, Request
from r1jax.engine.routes import Routes, places
from r1jax.engine.sampling import Kinds
from r1jax.engine.shards import Shards
from r1jax.model.cache import Stored
from r1jax.model.config import ModelConfig
from r1jax.sharding import processes

NEVER = 1 << 30  # slot-steps


class Continuous:
  """One engine: its pages, its compiled steps, its requests.

  stored: how the pages keep numbers, the activations' dtype if None. support: ids that each token
  was drawn from, given back. routes: whether completions have their experts. marks, decode: of the
  tokenizer, for budgets and for text.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    stops: tuple[int, ...],
    config: Config,
    announce: Announce = silent,
    stored: Stored | None = None,
    support: int = 0,
    marks: Marks | None = None,
    clock: Callable[[], float] = time.monotonic,
    mesh: jax.sharding.Mesh | None = None,
    drafting: Drafting | None = None,
    decode: Decode | None = None,
    routes: bool = True,
  ):
    self.cfg, self.stops, self.config = cfg, tuple(stops), config
    self.mesh, self.drafting, self.support = mesh, drafting, min(support, cfg.vocab)
    self.shards = Shards(config, buckets.shards(mesh))
    self.device = Device(cfg, config, mesh, stored, drafting, announce)
    self.seconds = self.device.seconds
    self.counts: collections.Counter[str] = collections.Counter()
    self._routes = Routes(cfg, config.pages * config.page) if routes else None
    self._records: dict[int, Record] = {}
    self._timed: set[int] = set()  # those that the clock bounds
    self._words = jax.random.key_data(jax.random.key(0)).size
    self._marks, self._clock, self._pace, self._decoder = marks, clock, 0.0, decode
    self._events: collections.deque[Event] = collections.deque()  # that nobody has taken yet
    self.asked, self.version = 0, -1  # requests so far, of the weights

  # What is asked.

  def load(self, params: Any, version: int | None = None) -> None:
    """From now on these weights write; None counts versions up. Cached prefixes are forgotten.

    Who runs goes on with what it has in its pages.
    """
    version = self.version + 1 if version is None else version
    if version <= self.version:
      raise ValueError(f'version {version} of the weights after {self.version}; expected a newer')
    self.device.load(params)
    self.version = version
    self.shards.forget()

  def release(self) -> None:
    """Gives the memory of pages and weights back; `load` is next. Compiled steps stay."""
    if not self.shards.idle:
      raise ValueError('requests are under way; let them end, or cancel them, before release')
    self.device.release()
    self.shards.forget()

  def submit(self, request: Request) -> int:
    """Its number; UserError, and nothing else changes, for what can never be served."""
    number, self.asked = self.asked, self.asked + 1
    requests.check(
      request, number, self._words, self.cfg.vocab, marks=self._marks, decode=self._decoder
    )
    timed = request.budget is not None and request.budget.seconds is not None
    if timed and processes.count() > 1:
      raise UserError(f'request {number}: several processes share no clock: leave seconds out')
    r = record.start(
      request, number, self._clock(), self._marks, self._decoder, self.support, self.stops
    )
    self.shards.submit(
      Place(number, tuple(request.prompt), request.limit, request.priority, float(number))
    )
    self._records[number] = r
    if timed:
      self._timed.add(number)
    self._ask(number)
    return number

  def cancel(self, number: int) -> None:
    """Ends a request that waits or runs; it gives no completion."""
    self.shards.cancel(number)
    self._forget(number)

  def generate(self, asked: Iterable[Request]) -> Iterator[Completion | Failed]:
    """What these requests and those submitted before come to, each as soon as it has ended."""
    return (e for e in self.stream(asked) if not isinstance(e, Piece))

  def stream(self, asked: Iterable[Request]) -> Iterator[Event]:
    """The same, and pieces of those that ask for them."""
    if self.device.params is None:
      raise ValueError('no weights are loaded; call load first')
    for request in asked:
      number = self.asked
      try:
        self.submit(request)
      except UserError as error:
        yield Failed(number, str(error))
    while self._events or not self.shards.idle:
      if not self._events:
        self._work()
      while self._events:
        yield self._events.popleft()

  # One step.

  def step(self) -> list[Event]:
    """One plan: chunks of prompts, a burst for all others; gives what came of it."""
    self._work()
    events, self._events = list(self._events), collections.deque()
    return events

  def _work(self) -> None:
    """A step. Whatever interrupts it, completions stay, and who ran is computed again."""
    if self.device.params is None:
      raise ValueError('no weights are loaded; call load first')
    try:
      self._go()
    except BaseException:
      self.device.lose()  # pages were given to the step that failed
      self.shards.restart()
      raise

  def _go(self) -> None:
    began, device = time.perf_counter(), self.device.busy
    for number in sorted(self._timed):
      # A burst looks at the clock itself; who waits or is being filled is asked here.
      if self.shards.sequence(number).filling:
        self._ask(number)
    plan = self.shards.plan()
    # Pages may pass to others as soon as somebody ends: what this plan reads is written down first.
    tables = {row: np.array(s.pages, np.int32) for row, s in self.shards.running()}
    self.counts['preempted'] += len(plan.preempted)
    with contextlib.ExitStack() as stack:
      if self.mesh is not None:
        stack.enter_context(jax.set_mesh(self.mesh))
      parts = inputs.batches(plan.prefill, self.shards, self.config.chunk)
      filling = [self._fill(part, each, tables) for each, part in parts]
      burst = self._burst(plan, tables) if plan.decode else None
    for settle in [*filling, *([burst] if burst else [])]:
      settle()
    self.seconds['host'] += time.perf_counter() - began - (self.device.busy - device)

  def _fill(self, chunks: list[Chunk], each: int, tables: dict) -> Callable[[], None]:
    """Starts to compute chunks of like length; what is returned waits for them."""
    part = inputs.chunks(chunks, each, self.shards)
    kinds, rows = self._rows(part.rows, tables)
    B, L, T = *part.tokens_BL.shape, rows.table_BT.shape[1]
    what = f'prefill of {B} × {L}, {T} pages a row'
    told = part.tokens_BL, part.next_B, part.start_B, part.length_B, rows
    filled = self.device.call(what, steps.prefill, kinds, told)

    def settle() -> None:
      made = self._fetch(filled, 'prefill')
      self.counts['filled'] += int(part.length_B.sum())
      for b, c in part.where:
        self._keep_routes(self._at(c.slot, tables[c.slot], c.start, len(c.tokens)), made.routes, b)
        self.shards.chunk_done(c.slot, len(c.tokens))
        if c.last:
          sets = None if made.drawn.support_BK is None else made.drawn.support_BK[b : b + 1]
          token = int(made.drawn.token_B[b])
          drawn = Drawn([token], made.drawn.logp_B[b : b + 1].tolist(), sets, token in self.stops)
          self._take(c.slot, drawn, made.draft_BK, b, tables)

    return settle

  def _burst(self, plan: Plan, tables: dict) -> Callable[[], None]:
    """Starts a burst; what is returned waits for it."""
    began, rows_B = time.perf_counter(), inputs.spread(plan.decode, self.shards)
    B, K = len(rows_B), drafts.count(self.drafting)
    live = [(b, row) for b, row in enumerate(rows_B) if row is not None]
    token_B, position_B, left_B, cap_B = np.zeros((4, B), np.int32)
    draft_BK = np.full((B, K), -1, np.int32) if K else None
    for b, row in live:
      s = self.shards.at(row)
      r = self._records[s.request.id]
      token_B[b], position_B[b] = s.tokens[-1], len(s.tokens) - 1
      left_B[b], cap_B[b] = s.left, r.cap
      if K and r.drafts is not None:
        draft_BK[b] = r.drafts
    kinds, rows = self._rows(rows_B, tables)
    rows, T = rows._replace(cap_B=cap_B), rows.table_BT.shape[1]
    patience = self.config.patience * B if self.shards.waiting else NEVER
    numbers = np.int32(plan.burst), np.int32(patience)
    known = self.device.compiled
    burst = self.device.call(
      f'decode of {B} rows, {T} pages a row', steps.decode, kinds,
      (token_B, draft_BK, position_B, left_B, rows, *numbers),
      stops=self.stops, most=self.config.burst,
    )  # fmt: skip
    alone = self.device.compiled == known and not plan.prefill

    def settle() -> None:
      made = self._fetch(burst, 'decode')
      count = int(made.count_B.max())
      if alone:  # nothing was compiled, no prompt computed
        self._pace = (time.perf_counter() - began) / max(1, count)
      self.counts['steps'] += count
      self.counts['drafted'] += int(made.drafted_B.sum())
      self.counts['accepted'] += int(made.accepted_B.sum())
      for b, row in live:
        n = int(made.count_B[b])
        self._keep_routes(self._at(row, tables[row], position_B[b], n), made.routes, b)
        sets = None if made.support_BNK is None else made.support_BNK[b, :n]
        tokens, logp = made.token_BN[b, :n].tolist(), made.logp_BN[b, :n].tolist()
        drawn = Drawn(tokens, logp, sets, bool(made.stopped_B[b]))
        self._take(row, drawn, made.draft_BK, b, tables)

    return settle

  # What comes of it.

  def _take(
    self, row: int, drawn: Drawn, draft_BK: np.ndarray | None, b: int, tables: dict
  ) -> None:
    """Gives a row what was drawn for it."""
    s = self.shards.at(row)
    r = self._records[s.request.id]
    r.drafts = None if draft_BK is None else draft_BK[b]
    taken = record.take(r, s.count, drawn, self._clock(), self._pace)
    if taken.kept:
      r.versions = (r.versions or (self.version,))[0], self.version
    self.counts['written'] += len(taken.kept)
    self._events += record.piece(r, taken)
    if taken.end:
      written, read = [*s.written, *taken.kept, *taken.forced], len(s.tokens) + len(taken.kept) - 1
      self.shards.advance(row, taken.kept, True)
      self._end(r, written, taken.end, self._at(row, tables[row], 0, read), s.reused)
      return
    if taken.kept:
      self.shards.advance(row, taken.kept, False)
    if taken.forced:
      self.shards.forced(r.number, taken.forced)

  def _ask(self, number: int) -> None:
    """Asks a budget whether there is still time: of one who waits, or is being filled."""
    r = self._records[number]
    if r.watcher is None:
      return
    s = self.shards.sequence(number)
    taken = record.take(r, s.count, NOTHING, self._clock(), self._pace)
    self._events += record.piece(r, taken)
    if taken.end:
      # Of one who was preempted nobody knows any more which experts it had.
      read = None if s.count else np.zeros(0, np.int32)
      if s.slot is not None:
        row = self.shards.home(number) * self.shards.rows + s.slot
        read = self._at(row, np.array(s.pages, np.int32), 0, s.computed)
      self.shards.cancel(number)
      self._end(r, [*s.written, *taken.forced], taken.end, read, s.reused)
    elif taken.forced:
      self.shards.forced(number, taken.forced)

  def _end(
    self, r: Record, written: list[int], end: End, read: np.ndarray | None, reused: int
  ) -> None:
    """Hands out a completion; read: where its positions lie of whose experts it tells."""
    self._forget(r.number)
    self.counts['reused'] += reused
    routes = self._routes.take(read) if self._routes and read is not None else None
    done, pieces = record.complete(r, written, end, routes, self._decoder)
    self._events += [*pieces, done]

  def _forget(self, number: int) -> None:
    del self._records[number]
    self._timed.discard(number)

  # Of rows.

  def _rows(self, asked: list[int | None], tables: dict) -> tuple[Kinds, steps.Rows]:
    """What the steps are told of these rows; None is idle."""
    texts = [None if row is None else self.shards.at(row) for row in asked]
    records = [None if s is None else self._records[s.request.id] for s in texts]
    here = [None if row is None else tables[row] for row in asked]
    return inputs.rows(texts, records, here, self.support, self.config, self.drafting)

  def _at(self, row: int, pages: np.ndarray, start: int, count: int) -> np.ndarray:
    """Where positions start … start+count−1 of a row lie among all places of the pool."""
    first = self.shards.shard(row) * self.shards.pages
    return places(pages + first, self.config.page, start, count)

  def _fetch(self, made: Any, what: str) -> Any:
    return self.device.fetch(made if self._routes else made._replace(routes=()), what)

  def _keep_routes(self, where: np.ndarray, routes: tuple, b: int) -> None:
    if self._routes:
      self._routes.put(where, routes, b)
