"""Several schedulers that look like one."""

import pytest

from r1jax.core.errors import UserError
from r1jax.engine.plan import Config, Request
from r1jax.engine.shards import Shards

CONFIG = Config(slots=4, pages=16, page=2, longest=12, chunk=8, burst=2)


def ask(shards, id, prompt, limit=4):
  shards.submit(Request(id, tuple(prompt), limit, 0, float(id)))


def carry_out(shards):
  """One plan, every sampled token a 9; rows that were filled or decoded."""
  plan = shards.plan()
  for c in plan.prefill:
    shards.chunk_done(c.slot, len(c.tokens))
    if c.last:
      shards.advance(c.slot, [9], False)
  for row in plan.decode:
    shards.advance(row, [9] * min(plan.burst, shards.at(row).left), False)
  return [c.slot for c in plan.prefill], list(plan.decode)


def test_a_prompts_group_stays_together_until_its_shard_is_full():
  shards = Shards(CONFIG, 2)
  for id, prompt in enumerate([(1, 2, 3), (4, 5, 6), (1, 2, 3), (4, 5, 6), (1, 2, 3)]):
    ask(shards, id, prompt)
  filled, _ = carry_out(shards)
  # The third of the first group finds its shard full, and the other full as well: it waits there.
  assert [shards.at(row).request.id for row in filled] == [0, 1]
  carry_out(shards)
  assert {row: s.request.id for row, s in shards.running()} == {0: 0, 1: 2, 2: 1, 3: 3}
  assert shards.waiting


def test_one_prompt_alone_spreads_over_idle_shards():
  shards = Shards(CONFIG, 2)
  for id in range(4):
    ask(shards, id, (1, 2, 3))
  assert [s.count for s in shards.all] == [2, 2]


def test_rows_are_numbered_through_and_pages_are_the_shards_own():
  shards = Shards(CONFIG, 2)
  ask(shards, 0, (1, 2, 3))
  ask(shards, 1, (4, 5, 6))
  carry_out(shards)
  rows = dict(shards.running())
  assert list(rows) == [0, 2] and [shards.shard(r) for r in rows] == [0, 1]
  assert rows[0].pages == rows[2].pages  # numbers within the shard
  _, decoded = carry_out(shards)
  assert decoded == [0, 2]


def test_all_ends_and_leaves_no_page_and_no_kin():
  shards = Shards(CONFIG, 2)
  for id in range(7):
    ask(shards, id, (id % 3, 1, 2, 5))
  assert shards.cancel(6).request.id == 6
  for _ in range(40):
    if shards.idle:
      break
    carry_out(shards)
  assert shards.idle and not shards._kin and shards._load == [0, 0]
  for s in shards.all:
    s.pages.check([])
  with pytest.raises(UserError, match='request 6 neither waits nor runs'):
    shards.cancel(6)


def test_sizes_that_do_not_split_say_so():
  with pytest.raises(UserError, match='slots=4 do not split over 3 parts'):
    Shards(CONFIG, 3)
