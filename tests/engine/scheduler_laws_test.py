"""Laws of scheduling under any order of events, with a model of hashes.

The cache entry of a position is a hash of all tokens up to it, made from the entry before it where
the table says that it lies; the next token is a function of the newest entry. A page that is given
twice, lost, or shared by those who differ gives other tokens than a sequence alone.
"""

import functools
import random

import hypothesis
import hypothesis.strategies as st
from hypothesis import stateful

from r1jax.engine.plan import Config, Request
from r1jax.engine.scheduler import Scheduler

STOP = 0


def extend(digest: int, token: int) -> int:
  return hash((digest, token))


def digest(tokens) -> int:
  return functools.reduce(extend, tokens, 0)


def following(digest: int) -> int:
  return digest // 64 % 6


def plain(request: Request, forced: dict[int, list[int]]) -> list[int]:
  """The completion without any scheduling; `forced` by the tokens written before."""
  tokens = list(request.prompt)
  while True:
    written = len(tokens) - len(request.prompt)
    if written in forced:
      tokens += forced[written]
      continue
    tokens.append(following(digest(tokens)))
    if tokens[-1] == STOP or written + 1 == request.limit:
      return tokens[len(request.prompt) :]


class Engine:
  """Carries out plans on a cache of hashes that reads and writes only where the tables say."""

  def __init__(self, scheduler: Scheduler):
    self.scheduler, self.memory, self.version = scheduler, {}, 0
    self.requests, self.forced, self.done, self.slots = {}, {}, {}, {}

  def submit(self, request: Request) -> None:
    self.scheduler.submit(request)
    self.requests[request.id], self.forced[request.id] = request, {}

  def place(self, s, position: int) -> tuple[int, int]:
    return s.pages[position // self.scheduler.config.page], position % self.scheduler.config.page

  def compute(self, s, position: int, token: int) -> int:
    """Writes one entry, which nobody else may hold, and returns it."""
    page, offset = self.place(s, position)
    assert position >= s.computed
    assert sum(page in r.pages for r in self.scheduler.running) == 1
    before = self.memory[self.place(s, position - 1)][0] if position else 0
    self.memory[page, offset] = extend(before, token), self.version
    return self.memory[page, offset][0]

  def step(self, rng: random.Random) -> None:
    """One plan, with bursts cut anywhere."""
    plan = self.scheduler.plan()
    self.check_plan(plan)
    for c in plan.prefill:
      s = self.scheduler.slots[c.slot]
      if self.slots.get(c.slot) is not s:
        assert all(self.memory[self.place(s, p)][1] == self.version for p in range(c.start))
      self.slots[c.slot] = s
      entries = [self.compute(s, c.start + i, t) for i, t in enumerate(c.tokens)]
      self.scheduler.chunk_done(c.slot, len(c.tokens))
      if c.last:
        self.report(c.slot, [following(entries[-1])])
    for slot in plan.decode:
      s, new = self.scheduler.slots[slot], []
      for _ in range(rng.randint(1, min(plan.burst, s.left))):
        position = len(s.tokens) + len(new) - 1
        new.append(following(self.compute(s, position, (s.tokens[-1:] + new)[-1])))
        if new[-1] == STOP:
          break
      self.report(slot, new)

  def report(self, slot: int, new: list[int]) -> None:
    done = self.scheduler.advance(slot, new, new[-1] == STOP)
    if done:
      self.done[done.request.id] = done.written

  def check_plan(self, plan) -> None:
    config = self.scheduler.config
    busy = [*(c.slot for c in plan.prefill), *plan.decode]
    assert len(set(busy)) == len(busy)
    assert sum(len(c.tokens) for c in plan.prefill) <= config.chunk
    assert bool(busy) != self.scheduler.idle
    assert (plan.burst > 0) == bool(plan.decode)
    for c in plan.prefill:
      s = self.scheduler.slots[c.slot]
      assert (c.id, c.start) == (s.request.id, s.computed)
      assert list(c.tokens) == s.tokens[c.start : c.start + len(c.tokens)]
      assert c.last == (c.start + len(c.tokens) == len(s.tokens))

  def check(self) -> None:
    """Accounts agree, and every valid entry is that of the sequence which reads it."""
    self.scheduler.pages.check([s.pages for s in self.scheduler.running])
    for s in self.scheduler.running:
      held = [self.memory[self.place(s, p)][0] for p in range(s.computed)]
      assert held == [digest(s.tokens[: p + 1]) for p in range(s.computed)]

  def finish(self, rng: random.Random) -> None:
    """Runs to the end; each request has written what it would have written alone."""
    for _ in range(1000):
      if not self.scheduler.idle:
        self.step(rng)
        self.check()
    assert self.scheduler.idle
    for id, written in self.done.items():
      assert written == plain(self.requests[id], self.forced[id])
    pages = self.scheduler.pages
    assert pages.used == 0
    assert pages.free + pages.cached == pages.count


PROMPTS = st.lists(st.sampled_from([(1, 1, 1), (1, 2), (3,)]), min_size=1, max_size=4)

FORCED = st.lists(st.integers(0, 3), min_size=1, max_size=3)


class AnyOrder(stateful.RuleBasedStateMachine):
  """Requests that come, run, lose their pages, are cancelled and forced, in any order."""

  @stateful.initialize(
    page=st.integers(1, 3), spare=st.integers(0, 6), reuse=st.booleans(), slots=st.integers(1, 4),
    chunk=st.integers(1, 9), burst=st.integers(1, 5),
  )  # fmt: skip
  def start(self, page, spare, reuse, slots, chunk, burst):
    pages = -(-19 // page) + spare
    self.engine = Engine(Scheduler(Config(slots, pages, page, 20, chunk, burst, reuse)))
    self.random, self.cancelled = random.Random(0), set()

  @stateful.rule(parts=PROMPTS, limit=st.integers(1, 8), seed=st.integers(0, 9))
  def submit(self, parts, limit, seed):
    """A group of one prompt."""
    prompt, rng = tuple(t for part in parts for t in part), random.Random(seed)
    for _ in range(rng.randint(1, 4)):
      id, priority = len(self.engine.requests), rng.randint(0, 1)
      self.engine.submit(Request(id, prompt, limit, priority, arrived=float(id // 2)))

  @stateful.precondition(lambda self: not self.engine.scheduler.idle)
  @stateful.rule(times=st.integers(1, 3), seed=st.integers(0, 9))
  def step(self, times, seed):
    self.random = random.Random(seed)
    for _ in range(times):
      self.engine.step(self.random)

  @stateful.precondition(lambda self: not self.engine.scheduler.idle)
  @stateful.rule(pick=st.integers(0, 99))
  def cancel(self, pick):
    alive = sorted(self.engine.requests.keys() - self.engine.done.keys() - self.cancelled)
    id = alive[pick % len(alive)]
    self.cancelled.add(id)
    whole = plain(self.engine.requests[id], self.engine.forced[id])
    written = self.engine.scheduler.cancel(id).written
    assert whole[: len(written)] == written

  @stateful.rule(
    pick=st.integers(0, 99), tokens=st.lists(st.integers(0, 3), min_size=1, max_size=3)
  )
  def force(self, pick, tokens):
    able = [s for s in self.engine.scheduler.running if s.left > len(tokens)]
    if able:
      s = able[pick % len(able)]
      self.engine.forced[s.request.id][len(s.written)] = tokens
      self.engine.scheduler.forced(s.request.id, tokens)

  @stateful.precondition(lambda self: self.engine.scheduler.running)
  @stateful.rule(rarely=st.integers(0, 3))
  def forget(self, rarely):
    if rarely:
      return
    self.engine.version += 1
    self.engine.scheduler.forget()

  @stateful.invariant()
  def sound(self):
    if hasattr(self, 'engine'):
      self.engine.check()

  def teardown(self):
    if hasattr(self, 'engine'):
      self.engine.finish(self.random)
      ended = self.engine.done.keys() | self.cancelled
      assert ended == self.engine.requests.keys()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis.settings(
  max_examples=200, stateful_step_count=40, deadline=None, derandomize=True
)


@hypothesis.given(
  seed=st.integers(0, 10**6), slots=st.integers(2, 5), page=st.integers(1, 3),
  chunk=st.integers(3, 12), burst=st.integers(1, 6),
)  # fmt: skip
def test_a_crowd_on_few_pages_is_preempted_and_writes_what_each_would_alone(
  seed, slots, page, chunk, burst
):
  engine = Engine(Scheduler(Config(slots, -(-15 // page), page, 16, chunk, burst)))
  rng = random.Random(seed)
  for id in range(16):
    prompt = rng.choice(((1, 1), (2,))) * rng.randint(1, 3)
    engine.submit(Request(id, prompt, rng.randint(6, 10), rng.randint(0, 1), float(id)))
  engine.finish(rng)
  assert len(engine.done) == 16


def test_the_crowd_is_preempted():
  engine = Engine(Scheduler(Config(slots=4, pages=9, page=2, longest=18, chunk=6, burst=3)))
  for id in range(20):
    engine.submit(Request(id, (id % 2 + 1,) * 4, 10))
  lost = 0
  for _ in range(100):
    before = {s.request.id for s in engine.scheduler.running}
    engine.step(random.Random(0))
    lost += len(before & {s.request.id for s in engine.scheduler.waiting})
  assert engine.scheduler.idle
  assert lost > 5
