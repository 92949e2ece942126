"""Who runs next, on which pages: continuous batching as plain decisions.

A request waits until a slot (a row of the decode batch) and pages are there, is filled (its tokens
computed, in chunks), and then decoded in bursts until it ends. The caller carries out one `Plan`
before it asks for the next, and reports what came of it:

    plan = scheduler.plan()
    for c in plan.prefill:          # compute c.tokens from position c.start on
      scheduler.chunk_done(c.slot, len(c.tokens))
      if c.last: scheduler.advance(c.slot, [sampled], ended)
    for slot in plan.decode:        # 1 … plan.burst tokens a slot, no more than its `left`
      scheduler.advance(slot, sampled, ended)

Order. Requests take their turn by (priority, arrival, id); the first that finds no slot or no pages
holds up all behind it, so that none is starved by smaller ones. One plan fills at most `chunk`
tokens in that order, and decodes all others: a long prompt delays no answer by more than a chunk.
While chunks follow on chunks a burst is one token, so that the batch is full before it runs.

Prefixes. Whole computed pages are published, and found by those who are admitted later. A request
does not enter while one before it computes, in the same plan, a page that both begin with: of a
group with one prompt the first enters, and the others follow when its pages can be read.

Pages. Before a burst each decoding sequence gets the pages for it. If they do not suffice the burst
shrinks, down to one token; then the last in order is preempted. It publishes its pages, waits in
its old place with all that it has written, and is filled again. The first in order is never
preempted while others run, so that something always ends.

No clock, no jax, no randomness: the same calls give the same plans. Cost of a plan: O(slots), and
O(slots + its prompt) for each request that may enter, of which it looks at no more than there are
slots. (64 slots that decode: 0.1 ms on one core, however many wait.)
"""

import bisect
import heapq

from r1jax.core.errors import UserError
from r1jax.engine.pages import Pages
from r1jax.engine.plan import Chunk, Config, Plan, Request, Sequence


class Scheduler:
  """The requests that wait and those in the slots, with the pages of all."""

  def __init__(self, config: Config):
    self.config = config
    self.pages = Pages(config.pages, config.page)
    self.slots: list[Sequence | None] = [None] * config.slots
    self.waiting: list[Sequence] = []  # by rank
    self._known: dict[int, Sequence] = {}

  @property
  def idle(self) -> bool:
    """Whether nothing waits or runs."""
    return not self._known

  @property
  def running(self) -> list[Sequence]:
    """The sequences in the slots, by slot."""
    return [s for s in self.slots if s is not None]

  @property
  def count(self) -> int:
    """How many wait or run."""
    return len(self._known)

  def sequence(self, id: int) -> Sequence:
    """Of a request that waits or runs."""
    return self._known[id]

  def submit(self, request: Request) -> None:
    """Lets the request wait for its turn; UserError if it can never have one."""
    name, c = f'request {request.id}', self.config
    if request.id in self._known:
      raise UserError(f'{name}: the id is in use; give each request its own until it has ended')
    if not request.prompt:
      raise UserError(f'{name}: the prompt is empty; give it one token or more')
    if request.limit < 1:
      raise UserError(f'{name}: limit={request.limit}; ask for 1 token or more')
    if len(request.prompt) + request.limit > c.longest:
      raise UserError(
        f'{name}: a prompt of {len(request.prompt)} tokens and {request.limit} more exceed '
        f'longest={c.longest}; ask for less or raise longest'
      )
    if self._pages_for(request.positions) > c.pages:
      raise UserError(
        f'{name}: needs {self._pages_for(request.positions)} pages of {c.page} positions and there '
        f'are {c.pages}; ask for less or raise pages'
      )
    self._known[request.id] = Sequence(request, list(request.prompt))
    bisect.insort(self.waiting, self._known[request.id], key=_rank)

  def cancel(self, id: int) -> Sequence:
    """Ends the request wherever it is and gives back what it has."""
    if id not in self._known:
      raise UserError(f'request {id} neither waits nor runs: it has ended or was never submitted')
    sequence = self._known.pop(id)
    if sequence.slot is None:
      self._unqueue(sequence)
    else:
      self._vacate(sequence)
    return sequence

  def plan(self) -> Plan:
    """What to do next; who is named by `preempted` has left its slot already."""
    preempted = []
    while self._lacking(1) > self.pages.available:
      preempted.append(self._preempt(max(self.running, key=_rank)))
    decoding = [s for s in self.running if not s.filling]
    burst = min(self.config.burst, max((s.left for s in decoding), default=0))
    if self._lacking(burst) > self.pages.available:
      sizes = range(1, burst + 1)
      burst = bisect.bisect_right(sizes, self.pages.available, key=self._lacking)
    for s in self.running:
      s.pages += self.pages.allocate(self._lacks(s, burst))
    # What was lost is given away in the next plan: no id and no slot is in two parts of this one.
    prefill = self._fill(admitting=not preempted)
    if prefill and (not all(c.last for c in prefill) or (self.waiting and None in self.slots)):
      burst = min(burst, 1)
    return Plan(prefill, tuple(s.slot for s in decoding), burst, tuple(preempted))

  def chunk_done(self, slot: int, count: int) -> None:
    """The cache holds `count` tokens more of a sequence that is being filled."""
    s = self._at(slot)
    if not s.filling or not 0 < count <= len(s.tokens) - s.computed:
      raise ValueError(
        f'slot {slot}: a chunk of {count} tokens is done, and {len(s.tokens) - s.computed} were '
        'to be computed; report the chunks of the newest plan, each once'
      )
    s.computed += count
    self._publish(s)

  def advance(self, slot: int, tokens: list[int], ended: bool) -> Sequence | None:
    """Appends what was sampled; gives the sequence back if it has ended by that or by its limit."""
    s = self._at(slot)
    if s.filling and s.computed < len(s.tokens):
      raise ValueError(f'slot {slot} advances before its last chunk is done; call chunk_done first')
    room = min(s.left, len(s.pages) * self.config.page - len(s.tokens) + 1)
    if not (tokens or ended) or len(tokens) > room:
      raise ValueError(f'slot {slot} advances by {len(tokens)} tokens; expected 1 to {room}')
    s.tokens += tokens
    s.computed, s.filling = len(s.tokens) - 1, False
    if not ended and s.left:
      return None
    del self._known[s.request.id]
    self._vacate(s)
    return s

  def forced(self, id: int, tokens: list[int]) -> None:
    """Appends tokens that were not sampled to a request that runs or waits.

    The next chunks compute them, then sampling goes on.
    """
    s = self._known[id]
    if not 0 < len(tokens) < s.left:
      raise ValueError(
        f'request {id}: {len(tokens)} tokens are forced and {s.left} may still be written; '
        'expected 1 or more, and one left to be sampled'
      )
    s.tokens += tokens
    s.filling = True

  def forget(self) -> None:
    """The weights changed: no prefix computed so far is found by anyone who is admitted later.

    Those who run keep their own pages; preempt or cancel them where that is not wanted.
    """
    self.pages.clear()
    for s in self.running:
      s.shared = False

  def restart(self) -> None:
    """What was computed is lost: those who run wait in their old places, with what they wrote."""
    self.forget()
    for s in self.running:
      self._preempt(s)

  def _fill(self, admitting: bool) -> tuple[Chunk, ...]:
    """Chunks in order, at most `chunk` tokens in all; who waits enters when it has its turn."""
    budget, chunks, before = self.config.chunk, [], []
    filling = sorted((s for s in self.running if s.filling), key=_rank)
    waiting = self.waiting[: self.config.slots] if admitting else []
    for s in heapq.merge(filling, waiting, key=_rank):
      if not budget:
        break
      if s.slot is None:
        if not admitting or any(self._follows(s, other) for other in before):
          continue
        admitting = self._admit(s)
        if not admitting:
          continue
      tokens = tuple(s.tokens[s.computed : s.computed + budget])
      if not tokens:
        raise ValueError(f'slot {s.slot}: its last chunk is done; call advance before plan')
      last = s.computed + len(tokens) == len(s.tokens)
      chunks.append(Chunk(s.slot, s.request.id, s.computed, tokens, last))
      budget -= len(tokens)
      before.append(s)
    return tuple(chunks)

  def _follows(self, s: Sequence, other: Sequence) -> bool:
    """Whether the other's next page to be computed is one that s could read."""
    end = self._whole(other) * self.config.page + self.config.page
    return (
      self.config.reuse
      and other.shared
      and end <= min(len(s.tokens) - 1, len(other.tokens))
      and s.tokens[end - 1] == other.tokens[end - 1]  # mostly false, and cheaper than the slices
      and s.tokens[:end] == other.tokens[:end]
    )

  def _admit(self, s: Sequence) -> bool:
    """Gives a slot and pages for all tokens; leaves one page more for the first burst, if used."""
    if None not in self.slots:
      return False
    found = self.pages.match(s.tokens) if self.config.reuse else []
    need = self._pages_for(len(s.tokens))
    wanted = self._pages_for(min(len(s.tokens) + self.config.page, s.request.positions))
    if wanted - len(found) > self.pages.available:
      self.pages.release(found)
      return False
    s.pages = found + self.pages.allocate(need - len(found))
    s.computed = len(found) * self.config.page
    s.reused += s.computed
    s.slot = self.slots.index(None)
    self.slots[s.slot] = s
    self._unqueue(s)
    return True

  def _preempt(self, s: Sequence) -> int:
    self._vacate(s)
    bisect.insort(self.waiting, s, key=_rank)
    return s.request.id

  def _vacate(self, s: Sequence) -> None:
    """Takes slot and pages; what is computed stays to be found."""
    self._publish(s)
    self.pages.release(s.pages)
    self.slots[s.slot] = None
    s.pages, s.computed, s.slot, s.filling, s.shared = [], 0, None, True, True

  def _publish(self, s: Sequence) -> None:
    if self.config.reuse and s.shared:
      self.pages.publish(s.tokens, s.pages[: self._whole(s)])

  def _whole(self, s: Sequence) -> int:
    return s.computed // self.config.page

  def _unqueue(self, s: Sequence) -> None:
    del self.waiting[bisect.bisect_left(self.waiting, s.rank, key=_rank)]

  def _pages_for(self, positions: int) -> int:
    return -(-positions // self.config.page)

  def _lacks(self, s: Sequence, burst: int) -> int:
    """Pages that a running sequence needs more: for its tokens, or for a burst."""
    end = len(s.tokens) if s.filling else s.computed + min(burst, s.left)
    return max(0, self._pages_for(end) - len(s.pages))

  def _lacking(self, burst: int) -> int:
    return sum(self._lacks(s, burst) for s in self.running)

  def _at(self, slot: int) -> Sequence:
    s = self.slots[slot]
    if s is None:
      raise ValueError(f'slot {slot} is empty: its sequence was cancelled, preempted or has ended')
    return s


def _rank(s: Sequence) -> tuple[int, float, int]:
  return s.rank
