"""Continuous batching on the trainer's own parameters: requests in, completions out.

    engine = Continuous(cfg, stops, Config(slots=16, pages=256, page=16, longest=512))
    for done in engine.generate(params, requests): …          in the order of ending

Sequences join and leave between bursts (scheduler.py decides, steps.py computes); prompts with a
common beginning share its pages, a group's prompt is computed once. Weights come with every call
and are used as they lie; other weights than those of the call before make all cached prefixes
invalid. Tokens, log-probabilities and expert choices are those of `engine.generate` with the same
keys: which slot, which chunks, which neighbours, preempted or not, does not enter.

A request may have a budget (budget.py): its thought then ends where that says, the tags are written
for the model and it answers. Bursts are cut so that no token behind a decision is computed.

Host work is O(slots) a burst; `seconds` has it apart from what the device took.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.program import Announce, Program, silent
from r1jax.engine import buckets, steps, watch
from r1jax.engine.budget import Action, Budget, Continue, End, Ended, Force, Marks, Used
from r1jax.engine.sampling import Kinds, RequestSampling, controls
from r1jax.engine.scheduler import Chunk, Config, Scheduler
from r1jax.engine.scheduler import Request as Place
from r1jax.engine.watch import Watcher
from r1jax.kernels.logprob.truncate import FILLER
from r1jax.model import cache as caches
from r1jax.model.cache import Stored
from r1jax.model.config import ModelConfig, MoE, runs

SHAPES = 64  # chunk batches and table widths of one engine
IDLE = RequestSampling()


@dataclasses.dataclass(frozen=True)
class Request:
  """Tokens to go on from and how; `seed` is the data of a jax key, whose draws are its own."""

  prompt: tuple[int, ...]
  limit: int
  seed: tuple[int, ...]
  sampling: RequestSampling = IDLE
  priority: int = 0
  budget: Budget | None = None


class Completion(NamedTuple):
  """What a request got, on the host.

  number: of the request, in the order of asking. ended: 'stop' by a stop token, the last of
  `tokens`; 'length' by its limit; else what a budget ended. used: figures of a budget. Forced
  tokens have log-probability 0. routes[run][block]: experts [n, prompt + tokens, A] by position, of
  the last token zeros, for it was never read. support: ids that each token was drawn from.
  """

  number: int
  tokens: np.ndarray
  logp: np.ndarray
  ended: Ended
  routes: tuple
  support: np.ndarray | None
  used: Used | None = None


@dataclasses.dataclass(eq=False)
class _Record:
  """A request under way: what the scheduler does not keep. cap: tokens until it is asked again."""

  request: Request
  number: int
  watcher: Watcher | None = None
  cap: int = 1 << 30
  logp: list[float] = dataclasses.field(default_factory=list)
  support: list[np.ndarray] = dataclasses.field(default_factory=list)


class Continuous:
  """One engine: its pages, its compiled steps, its requests."""

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
  ):
    self.cfg, self.stops, self.config, self._announce = cfg, tuple(stops), config, announce
    self.support, self.scheduler = support, Scheduler(config)
    self.seconds: collections.Counter[str] = collections.Counter()
    self.counts: collections.Counter[str] = collections.Counter()
    self._cache = caches.paged(cfg, config.pages, config.page, stored)
    self._routes = _places(cfg, config.pages * config.page)
    self._programs: dict[tuple, Program] = {}
    self._records: dict[int, _Record] = {}
    self.asked, self._params = 0, None  # requests so far
    self._marks, self._clock, self._pace = marks, clock, 0.0

  def submit(self, request: Request) -> int:
    """Its number; UserError, and nothing else changes, for what can never be served."""
    number = self.asked
    words = jax.random.key_data(jax.random.key(0)).shape
    if (len(request.seed),) != words:
      raise UserError(
        f'request {number}: seed has {len(request.seed)} words, a key has {words[0]}; give '
        'tuple(jax.random.key_data(key))'
      )
    wrong = [t for t in request.prompt if not 0 <= t < self.cfg.vocab]
    if wrong:
      raise UserError(f'request {number}: token {wrong[0]}, the vocabulary has {self.cfg.vocab}')
    watcher = None
    if request.budget is not None:
      if self._marks is None:
        raise UserError(f'request {number}: a budget needs the tags of a thought: give marks')
      watcher = watch.start(request.budget, request.limit, self._marks, self._clock())
    self.scheduler.submit(
      Place(number, tuple(request.prompt), request.limit, request.priority, float(number))
    )
    self._records[number] = _Record(request, number, watcher, 1 if watcher else 1 << 30)
    self.asked += 1
    return number

  def cancel(self, number: int) -> None:
    """Ends a request that waits or runs; it gives no completion."""
    self.scheduler.cancel(number)
    del self._records[number]

  def generate(self, params: Any, requests: Iterable[Request]) -> Iterator[Completion]:
    """Completions of these requests and of those submitted before, each as soon as it has ended."""
    for request in requests:
      self.submit(request)
    while not self.scheduler.idle:
      yield from self.step(params)

  def step(self, params: Any) -> list[Completion]:
    """One plan: chunks of prompts, a burst for all others; gives what has ended."""
    if params is not self._params:
      self.scheduler.forget()
      self._params = params
    began = time.perf_counter()
    plan = self.scheduler.plan()
    # Pages may pass to others as soon as somebody ends: what this plan reads is written down first.
    tables = {s.slot: np.array(s.pages, np.int32) for s in self.scheduler.running}
    self.seconds['scheduler'] += time.perf_counter() - began
    self.counts['preempted'] += len(plan.preempted)
    ended = self._fill(params, plan.prefill, tables) if plan.prefill else []
    return ended + (self._decode(params, plan.decode, plan.burst, tables) if plan.decode else [])

  def _fill(self, params: Any, chunks: tuple[Chunk, ...], tables: dict) -> list[Completion]:
    longest = max(len(c.tokens) for c in chunks)
    B, L = buckets.bucket(len(chunks), least=1), buckets.bucket(longest)
    tokens_BL, start_B, length_B = np.zeros((B, L), np.int32), *np.zeros((2, B), np.int32)
    for b, c in enumerate(chunks):
      tokens_BL[b, : len(c.tokens)], start_B[b], length_B[b] = c.tokens, c.start, len(c.tokens)
    rows, kinds = self._rows([c.slot for c in chunks], B, tables)
    what = f'prefill of {B} × {L}'
    program = self._program(what, ('prefill', kinds), steps.prefill, kinds=kinds)
    self._cache, filled = program(params, self._cache, tokens_BL, start_B, length_B, rows)
    filled = self._fetch(filled, 'prefill')
    self.counts['filled'] += int(length_B.sum())
    ended = []
    for b, c in enumerate(chunks):
      places = self._at(tables[c.slot], c.start, len(c.tokens))
      self._keep_routes(places, filled.routes, b)
      self.scheduler.chunk_done(c.slot, len(c.tokens))
      if c.last:
        token = int(filled.drawn.token_B[b])
        support = None if filled.drawn.support_BK is None else filled.drawn.support_BK[b : b + 1]
        stop = token in self.stops
        ended += self._advance(
          c.slot, [token], filled.drawn.logp_B[b : b + 1], support, stop, tables
        )
    return ended

  def _decode(self, params: Any, slots: tuple, burst: int, tables: dict) -> list[Completion]:
    B = self.config.slots
    token_B, position_B, left_B = np.zeros((3, B), np.int32)
    for slot in slots:
      s = self.scheduler.slots[slot]
      token_B[slot], position_B[slot] = s.tokens[-1], len(s.tokens) - 1
      left_B[slot] = min(s.left, self._records[s.request.id].cap)
    rows, kinds = self._rows(range(B), B, {k: tables[k] for k in slots})
    program = self._program(
      f'decode of {B} rows', ('decode', kinds), steps.decode,
      kinds=kinds, stops=self.stops, most=self.config.burst,
    )  # fmt: skip
    eager = bool(self.scheduler.waiting)
    self._cache, made = program(
      params, self._cache, token_B, position_B, left_B, rows, np.int32(burst), eager
    )
    before = self.seconds['decode']
    made = self._fetch(made, 'decode')
    self._pace = (self.seconds['decode'] - before) / max(1, int(made.count_B.max()))
    self.counts['steps'] += int(made.count_B.max())
    ended = []
    for slot in slots:
      n = int(made.count_B[slot])
      self._keep_routes(self._at(tables[slot], position_B[slot], n), made.routes, slot)
      support = None if made.support_BNK is None else made.support_BNK[slot, :n]
      ended += self._advance(
        slot, made.token_BN[slot, :n].tolist(), made.logp_BN[slot, :n], support,
        bool(made.stopped_B[slot]), tables,
      )  # fmt: skip
    return ended

  def _advance(
    self, slot: int, tokens: list[int], logp: np.ndarray, support: Any, stop: bool, tables: dict
  ) -> list[Completion]:
    began = time.perf_counter()
    s = self.scheduler.slots[slot]
    record, count = self._records[s.request.id], len(s.written)
    action: Action | None = End(count + len(tokens), (), 'stop') if stop else None
    if record.watcher:
      record.watcher, action = watch.observe(
        record.watcher, tokens, logp.tolist(), self._clock(), self._pace
      )
    room = record.request.limit
    if isinstance(action, Force) and action.at + len(action.ids) >= room:
      # reserve 0: nothing can be sampled behind the tags.
      action = End(action.at, action.ids[: room - action.at], action.why)
    if isinstance(action, (Force, End)):
      tokens = tokens[: max(0, action.at - count)]
    record.logp += logp[: len(tokens)].tolist()
    record.support += [] if support is None else [support[: len(tokens)]]
    self.counts['written'] += len(tokens)
    done = self.scheduler.advance(slot, tokens, isinstance(action, End))
    if done is None and isinstance(action, Force):
      self._force(slot, record, action.ids)
    elif isinstance(action, Continue):
      record.cap = action.limit
    self.seconds['scheduler'] += time.perf_counter() - began
    if done is None:
      return []
    del self._records[record.number]
    self.counts['reused'] += done.reused
    places = self._at(tables[slot], 0, len(done.tokens) - 1)
    return [self._completed(record, done.written, action, places)]

  def _force(self, slot: int, record: _Record, ids: tuple[int, ...]) -> None:
    """Writes ids for the model; its next token is sampled behind them."""
    self.scheduler.forced(slot, list(ids))
    record.logp += [0.0] * len(ids)
    if self.support:
      record.support.append(np.full((len(ids), self.support), FILLER, np.int32))
    record.watcher, action = watch.observe(record.watcher, (), (), self._clock(), self._pace)
    record.cap = action.limit if isinstance(action, Continue) else 1

  def _completed(
    self, record: _Record, written: list[int], action: Action | None, places: np.ndarray
  ) -> Completion:
    """What is handed out: without what a refusal dropped, with what closes it."""
    end = action if isinstance(action, End) else End(len(written), (), 'length')
    kept = min(end.at, len(written))
    read = min(len(places), len(record.request.prompt) + kept)
    more = len(record.request.prompt) + kept + len(end.ids) - read
    pad = ((0, 0), (0, more), (0, 0))
    support = np.concatenate(record.support)[:kept] if record.support else None
    if support is not None and end.ids:
      support = np.pad(support, ((0, len(end.ids)), (0, 0)), constant_values=FILLER)
    return Completion(
      record.number,
      np.array([*written[:kept], *end.ids], np.int32),
      np.array([*record.logp[:kept], *[0.0] * len(end.ids)], np.float32),
      end.why,
      jax.tree.map(lambda r: np.pad(r[:, places[:read]], pad), self._routes),
      support,
      record.watcher.used if record.watcher else None,
    )

  def _rows(self, slots: Iterable[int], B: int, tables: dict) -> tuple[steps.Rows, Kinds]:
    """Tables, seeds and sampling of these slots in order, rows without a table idle."""
    T = buckets.bucket(max(len(t) for t in tables.values()), least=4)
    table_BT = np.full((B, T), -1, np.int32)
    asked: list[Request | None] = [None] * B
    for b, slot in enumerate(slots):
      if slot in tables:
        table_BT[b, : len(tables[slot])] = tables[slot]
        asked[b] = self._records[self.scheduler.slots[slot].request.id].request
    words = len(next(r.seed for r in asked if r))
    seed_BW = np.array([r.seed if r else (0,) * words for r in asked], np.uint32)
    settings, kinds = controls([r.sampling if r else IDLE for r in asked], self.support)
    return steps.Rows(table_BT, seed_BW, settings), kinds

  def _program(self, what: str, name: tuple, f: Any, **known: Any) -> Program:
    if name not in self._programs:
      f = functools.partial(f, cfg=self.cfg, **known)
      self._programs[name] = Program(what, f, self._announce, SHAPES, donate_argnums=(1,))
    return self._programs[name]

  def _fetch(self, made: Any, what: str) -> Any:
    began = time.perf_counter()
    made = jax.device_get(made)
    self.seconds[what] += time.perf_counter() - began
    return made

  def _at(self, table: np.ndarray, start: int, count: int) -> np.ndarray:
    """Where positions start … start+count−1 lie among all places of the pool."""
    positions = np.arange(start, start + count)
    return table[positions // self.config.page] * self.config.page + positions % self.config.page

  def _keep_routes(self, places: np.ndarray, routes: tuple, row: int) -> None:
    def put(kept: np.ndarray, new: np.ndarray) -> None:
      kept[:, places] = new[:, row, : len(places)]

    jax.tree.map(put, self._routes, routes)


def _places(cfg: ModelConfig, places: int) -> tuple:
  """Expert ids by place of the pool, on the host: they share pages as the cache does."""

  def one(mlp: Any, n: int) -> np.ndarray | None:
    return np.zeros((n, places, mlp.active), np.int32) if isinstance(mlp, MoE) else None

  return tuple(tuple(one(l.mlp, r.repeats) for l in r.period) for r in runs(cfg.layers))
