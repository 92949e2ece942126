"""Continuous batching on the trainer's own parameters: requests in, completions out.

    engine = Continuous(cfg, stops, Config(slots=16, pages=256, page=16, longest=512))
    for done in engine.generate(params, requests): …          in the order of ending

Sequences join and leave between bursts (scheduler.py decides, steps.py computes); prompts with a
common beginning share its pages, a group's prompt is computed once. Weights come with every call
and are used as they lie; other weights than those of the call before make all cached prefixes
invalid. Tokens, log-probabilities and expert choices are those of `engine.generate` with the same
keys: which slot, which chunks, which neighbours, preempted or not, does not enter.

Host work is O(slots) a burst; `seconds` has it apart from what the device took.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.program import Announce, Program, silent
from r1jax.engine import buckets, steps
from r1jax.engine.generate import Samples
from r1jax.engine.sampling import Kinds, RequestSampling, controls
from r1jax.engine.scheduler import Chunk, Config, Scheduler
from r1jax.engine.scheduler import Request as Place
from r1jax.kernels.logprob.truncate import FILLER, Sampling
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


class Completion(NamedTuple):
  """What a request got, on the host.

  number: of the request, in the order of asking. stopped: by a stop token, the last of `tokens`;
  else by its limit. routes[run][block]: experts [n, prompt + tokens, A] by position, of the last
  token zeros, for it was never read. support: ids that each token was drawn from.
  """

  number: int
  tokens: np.ndarray
  logp: np.ndarray
  stopped: bool
  routes: tuple
  support: np.ndarray | None


@dataclasses.dataclass(eq=False)
class _Record:
  """A request under way: what the scheduler does not keep."""

  request: Request
  number: int
  logp: list[float] = dataclasses.field(default_factory=list)
  support: list[np.ndarray] = dataclasses.field(default_factory=list)
  stopped: bool = False


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
  ):
    self.cfg, self.stops, self.config, self._announce = cfg, tuple(stops), config, announce
    self.support, self.scheduler = support, Scheduler(config)
    self.seconds: collections.Counter[str] = collections.Counter()
    self.counts: collections.Counter[str] = collections.Counter()
    self._cache = caches.paged(cfg, config.pages, config.page, stored)
    self._routes = _places(cfg, config.pages * config.page)
    self._programs: dict[tuple, Program] = {}
    self._records: dict[int, _Record] = {}
    self._asked, self._params = 0, None

  def submit(self, request: Request) -> int:
    """Its number; UserError, and nothing else changes, for what can never be served."""
    number = self._asked
    words = jax.random.key_data(jax.random.key(0)).shape
    if (len(request.seed),) != words:
      raise UserError(
        f'request {number}: seed has {len(request.seed)} words, a key has {words[0]}; give '
        'tuple(jax.random.key_data(key))'
      )
    wrong = [t for t in request.prompt if not 0 <= t < self.cfg.vocab]
    if wrong:
      raise UserError(f'request {number}: token {wrong[0]}, the vocabulary has {self.cfg.vocab}')
    self.scheduler.submit(
      Place(number, tuple(request.prompt), request.limit, request.priority, float(number))
    )
    self._records[number] = _Record(request, number)
    self._asked += 1
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
      token_B[slot], position_B[slot], left_B[slot] = s.tokens[-1], len(s.tokens) - 1, s.left
    rows, kinds = self._rows(range(B), B, {k: tables[k] for k in slots})
    program = self._program(
      f'decode of {B} rows', ('decode', kinds), steps.decode,
      kinds=kinds, stops=self.stops, most=self.config.burst,
    )  # fmt: skip
    eager = bool(self.scheduler.waiting)
    self._cache, made = program(
      params, self._cache, token_B, position_B, left_B, rows, np.int32(burst), eager
    )
    made = self._fetch(made, 'decode')
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
    record = self._records[self.scheduler.slots[slot].request.id]
    record.logp += logp.tolist()
    record.support += [] if support is None else [support]
    record.stopped = stop
    self.counts['written'] += len(tokens)
    done = self.scheduler.advance(slot, tokens, stop)
    self.seconds['scheduler'] += time.perf_counter() - began
    if done is None:
      return []
    del self._records[record.number]
    self.counts['reused'] += done.reused
    places = self._at(tables[slot], 0, len(done.tokens) - 1)
    routes = jax.tree.map(lambda r: np.pad(r[:, places], ((0, 0), (0, 1), (0, 0))), self._routes)
    return [
      Completion(
        record.number,
        np.array(done.written, np.int32),
        np.array(record.logp, np.float32),
        stop,
        routes,
        np.concatenate(record.support) if record.support else None,
      )
    ]

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


def samples(
  engine: Continuous,
  params: Any,
  prompts_BP: np.ndarray,
  lengths_B: np.ndarray,
  key_B: jax.Array,
  sampling: Sampling,
  limit: int,
) -> Samples:
  """Completes right-padded prompts as `engine.generate` does, on the host; rows in their order."""
  settings = RequestSampling(sampling.temperature, sampling.top_k, sampling.top_p)
  seeds = np.asarray(jax.random.key_data(key_B)).tolist()
  prompts = [tuple(row[:n].tolist()) for row, n in zip(np.asarray(prompts_BP), lengths_B)]
  asked = [Request(p, limit, tuple(s), settings) for p, s in zip(prompts, seeds, strict=True)]
  first = engine._asked
  done = sorted(engine.generate(params, asked), key=lambda c: c.number)
  if len(done) != len(asked) or done[0].number != first:
    raise ValueError('other requests were under way; give this engine to one caller at a time')
  B, P = np.shape(prompts_BP)
  length_B = np.array([len(c.tokens) for c in done], np.int32)

  def rows(of: str, filler: float, *shape: int) -> np.ndarray:
    each = [getattr(c, of) for c in done]
    made = np.full((B, limit, *shape), filler, each[0].dtype)
    for to, x in zip(made, each):
      to[: len(x)] = x
    return made

  def whole(*routes_nLA: np.ndarray) -> np.ndarray:
    n, _, A = routes_nLA[0].shape
    made = np.zeros((n, B, P + limit, A), np.int32)
    for b, r in enumerate(routes_nLA):
      made[:, b, : r.shape[1]] = r
    return made

  return Samples(
    rows('tokens', 0),
    rows('logp', 0.0),
    length_B,
    np.array([c.stopped for c in done]),
    jax.tree.map(whole, *(c.routes for c in done)),
    rows('support', FILLER, engine.support) if engine.support else None,
  )


def _places(cfg: ModelConfig, places: int) -> tuple:
  """Expert ids by place of the pool, on the host: they share pages as the cache does."""

  def one(mlp: Any, n: int) -> np.ndarray | None:
    return np.zeros((n, places, mlp.active), np.int32) if isinstance(mlp, MoE) else None

  return tuple(tuple(one(l.mlp, r.repeats) for l in r.period) for r in runs(cfg.layers))
