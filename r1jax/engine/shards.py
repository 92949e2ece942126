"""The schedulers of an engine: one for each part of the mesh that holds its own rows and pages.

Rows are numbered through: shard i has rows i·slots/d … and its pages by its own numbers, so that no
page crosses devices. With one shard this is the scheduler itself.

Dealing. A request goes where its prompt lies already, so that a group's prompt is computed once,
unless that shard has all its slots taken and another has not; else where the fewest tokens are
asked for. The same requests are dealt alike by every process.
"""

import dataclasses
from collections.abc import Iterator

from r1jax.core.errors import UserError
from r1jax.engine.plan import Config, Plan, Request, Sequence
from r1jax.engine.scheduler import Scheduler


class Shards:
  """`count` schedulers that look like one; slots and pages of `config` are those of all."""

  def __init__(self, config: Config, count: int = 1):
    for name in ('slots', 'pages'):
      if getattr(config, name) % count:
        raise UserError(
          f'{name}={getattr(config, name)} do not split over {count} parts of the mesh; choose a '
          'multiple'
        )
    self.rows, self.pages = config.slots // count, config.pages // count
    one = dataclasses.replace(config, slots=self.rows, pages=self.pages)
    self.all = [Scheduler(one) for _ in range(count)]
    self._home: dict[int, int] = {}
    self._load = [0] * count  # positions asked for
    self._kin: dict[tuple[int, ...], tuple[int, int]] = {}  # prompt -> its shard, how many have it

  @property
  def idle(self) -> bool:
    """Whether nothing waits or runs."""
    return all(s.idle for s in self.all)

  @property
  def waiting(self) -> bool:
    """Whether someone waits for a slot or pages."""
    return any(s.waiting for s in self.all)

  def running(self) -> Iterator[tuple[int, Sequence]]:
    """The sequences in the slots, by row."""
    for i, s in enumerate(self.all):
      for one in s.running:
        yield i * self.rows + one.slot, one

  def shard(self, row: int) -> int:
    """Where a row lies."""
    return row // self.rows

  def at(self, row: int) -> Sequence:
    """The sequence of a row."""
    found = self.all[row // self.rows].slots[row % self.rows]
    if found is None:
      raise ValueError(f'row {row} is empty: its sequence was cancelled, preempted or has ended')
    return found

  def sequence(self, id: int) -> Sequence:
    """Of a request that waits or runs."""
    return self._of(id).sequence(id)

  def submit(self, request: Request) -> None:
    """Lets the request wait in its shard; UserError if it can never have a turn."""
    home = self._deal(request)
    self.all[home].submit(request)
    self._home[request.id] = home
    self._count(request, home, 1)

  def cancel(self, id: int) -> Sequence:
    """Ends the request wherever it is and gives back what it has."""
    if id not in self._home:
      raise UserError(f'request {id} neither waits nor runs: it has ended or was never submitted')
    gone = self._of(id).cancel(id)
    self._count(gone.request, self._home.pop(id), -1)
    return gone

  def forced(self, id: int, tokens: list[int]) -> None:
    """Appends tokens that were not sampled."""
    self._of(id).forced(id, tokens)

  def plan(self) -> Plan:
    """What to do next, with rows in place of slots; for the burst all shards have pages."""
    prefill, decode, bursts, preempted = [], [], [], []
    for i, s in enumerate(self.all):
      if s.idle:
        continue
      plan, first = s.plan(), i * self.rows
      prefill += [c._replace(slot=first + c.slot) for c in plan.prefill]
      decode += [first + slot for slot in plan.decode]
      bursts += [plan.burst] if plan.decode else []
      preempted += plan.preempted
    return Plan(tuple(prefill), tuple(decode), min(bursts, default=0), tuple(preempted))

  def chunk_done(self, row: int, count: int) -> None:
    """The cache holds `count` tokens more of a sequence that is being filled."""
    self.all[row // self.rows].chunk_done(row % self.rows, count)

  def advance(self, row: int, tokens: list[int], ended: bool) -> Sequence | None:
    """Appends what was sampled; gives the sequence back if it has ended."""
    done = self.all[row // self.rows].advance(row % self.rows, tokens, ended)
    if done is not None:
      self._count(done.request, self._home.pop(done.request.id), -1)
    return done

  def home(self, id: int) -> int:
    """The shard of a request that waits or runs."""
    return self._home[id]

  def restart(self) -> None:
    """What is computed was lost: all wait again."""
    for s in self.all:
      s.restart()

  def forget(self) -> None:
    """The weights changed: no prefix computed so far is found later."""
    for s in self.all:
      s.forget()

  def _of(self, id: int) -> Scheduler:
    return self.all[self._home[id]]

  def _deal(self, request: Request) -> int:
    least = min(range(len(self.all)), key=self._load.__getitem__)
    home, _ = self._kin.get(request.prompt, (least, 0))
    full = self.all[home].count >= self.rows > self.all[least].count
    return least if full else home

  def _count(self, request: Request, home: int, by: int) -> None:
    self._load[home] += by * request.positions
    where, kin = self._kin.pop(request.prompt, (home, 0))
    if kin + by:
      self._kin[request.prompt] = where, kin + by
