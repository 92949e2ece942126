"""Scheduling by hand on tiny pools; laws under any order of events: scheduler_laws_test.py."""

import sys

import pytest

from r1jax.core.errors import UserError
from r1jax.engine.plan import Chunk, Config, Request
from r1jax.engine.scheduler import Scheduler

STOP = 0


def make(**sizes) -> Scheduler:
  """Two slots, eight pages of four positions, unless told otherwise."""
  return Scheduler(Config(**{'slots': 2, 'pages': 8, 'page': 4, 'longest': 32} | sizes))


def ask(scheduler: Scheduler, id: int, prompt: tuple[int, ...], limit: int, **more) -> None:
  scheduler.submit(Request(id, prompt, limit, **more))


def fill(scheduler: Scheduler, plan, token: int = 1) -> list:
  """Carries out the chunks of a plan; those who finish."""
  done = []
  for c in plan.prefill:
    scheduler.chunk_done(c.slot, len(c.tokens))
    done += [scheduler.advance(c.slot, [token], False)] if c.last else []
  return [s for s in done if s]


def carry_out(scheduler: Scheduler, token: int = 1) -> list:
  """One plan with the same token everywhere; those who finish."""
  plan = scheduler.plan()
  done = fill(scheduler, plan, token)
  for slot in plan.decode:
    left = scheduler.slots[slot].left
    done.append(scheduler.advance(slot, [token] * min(plan.burst, left), False))
  return [s for s in done if s]


def ids(scheduler: Scheduler) -> list[int]:
  return [s.request.id for s in scheduler.running]


def test_a_request_is_filled_then_decoded_until_its_limit():
  s = make(burst=3)
  ask(s, 7, (1, 2, 3, 4, 5), 5)
  plan = s.plan()
  assert plan == ((Chunk(0, 7, 0, (1, 2, 3, 4, 5), True),), (), 0, ())
  s.chunk_done(0, 5)
  assert s.advance(0, [9], False) is None
  assert s.plan() == ((), (0,), 3, ())
  assert s.advance(0, [8, 7], False) is None
  assert (s.slots[0].computed, s.slots[0].left) == (7, 2)
  assert s.plan() == ((), (0,), 2, ())
  done = s.advance(0, [6, 5], False)
  assert (done.request.id, done.written, done.slot) == (7, [9, 8, 7, 6, 5], None)
  assert s.idle
  assert (s.pages.used, s.pages.cached) == (0, 2)
  s.pages.check([])


def test_ended_ends_before_the_limit():
  s = make()
  ask(s, 1, (1,), 9)
  s.plan()
  s.chunk_done(0, 1)
  assert s.advance(0, [STOP], True).written == [STOP]
  assert s.idle


def test_a_long_prompt_takes_several_plans_while_others_decode():
  s = make(chunk=4, burst=1)
  ask(s, 1, (1, 1), 6)
  carry_out(s)
  ask(s, 2, tuple(range(9)), 2)
  seen = []
  for _ in range(3):
    plan = s.plan()
    seen.append((plan.decode, [(c.start, c.tokens, c.last) for c in plan.prefill]))
    fill(s, plan)
    s.advance(0, [1], False)
  assert seen == [
    ((0,), [(0, (0, 1, 2, 3), False)]),
    ((0,), [(4, (4, 5, 6, 7), False)]),
    ((0,), [(8, (8,), True)]),
  ]
  assert s.plan().decode == (0, 1)


def test_one_plan_fills_several_prompts_up_to_its_budget():
  s = make(slots=4, chunk=5)
  for i in range(4):
    ask(s, i, (i, i), 2)
  assert [(c.id, c.tokens, c.last) for c in s.plan().prefill] == [
    (0, (0, 0), True), (1, (1, 1), True), (2, (2,), False)
  ]  # fmt: skip
  assert [w.request.id for w in s.waiting] == [3]


def test_admission_by_priority_then_arrival_then_id():
  s = make(slots=1)
  for id, priority, arrived in ((1, 0, 5.0), (2, 0, 3.0), (3, 1, 9.0), (5, 0, 4.0), (4, 0, 4.0)):
    ask(s, id, (id,), 1, priority=priority, arrived=arrived)
  assert [carry_out(s)[0].request.id for _ in range(5)] == [3, 2, 4, 5, 1]


def test_a_request_that_finds_no_pages_is_not_overtaken():
  s = make(pages=4, burst=1)
  ask(s, 1, (1,) * 7, 6, arrived=1.0)
  carry_out(s)
  ask(s, 2, (2,) * 9, 2, arrived=2.0)
  ask(s, 3, (3,), 1, arrived=3.0)
  order = []
  for _ in range(9):
    order += [d.request.id for d in carry_out(s)]
    assert 3 not in ids(s) or 2 in order or 2 in ids(s)
  assert order == [1, 3, 2]
  assert s.idle


def test_siblings_wait_for_the_first_and_then_read_its_pages():
  s = make(slots=3, chunk=6, pages=16)
  prompt = tuple(range(10))
  for i in range(3):
    ask(s, i, prompt, 2)
  ask(s, 3, (5,), 2)
  plan = s.plan()
  assert [(c.id, c.start, len(c.tokens)) for c in plan.prefill] == [(0, 0, 6)]
  fill(s, plan)
  plan = s.plan()
  assert [(c.id, c.start, len(c.tokens)) for c in plan.prefill] == [(0, 6, 4), (3, 0, 1)]
  fill(s, plan)
  plan = s.plan()
  assert [(c.id, c.start, c.tokens) for c in plan.prefill] == [(1, 8, (8, 9))]
  first, second = s.slots[0], s.slots[2]
  assert second.pages[:2] == first.pages[:2]
  assert second.pages[2] != first.pages[2]
  assert (first.reused, second.reused) == (0, 8)


def test_without_reuse_siblings_enter_together_and_share_nothing():
  s = make(reuse=False)
  for i in range(2):
    ask(s, i, tuple(range(9)), 2)
  plan = s.plan()
  assert [(c.id, c.start) for c in plan.prefill] == [(0, 0), (1, 0)]
  fill(s, plan)
  assert not set(s.slots[0].pages) & set(s.slots[1].pages)
  s.cancel(0)
  assert (s.pages.cached, s.pages.free) == (0, 5)


def test_siblings_enter_together_where_there_is_nothing_to_read():
  s = make()
  for i in range(2):
    ask(s, i, (1, 2, 3, 4), 2)  # a page, and its last token has to be computed by each
  assert [(c.id, c.start) for c in s.plan().prefill] == [(0, 0), (1, 0)]


def test_a_finished_conversation_is_continued_from_its_pages():
  s = make()
  ask(s, 1, (1, 2, 3), 6)
  carry_out(s, 9)
  done = carry_out(s, 9)[0]
  ask(s, 2, (*done.tokens, 4), 2)
  (chunk,) = s.plan().prefill
  assert (chunk.start, chunk.tokens) == (8, (9, 4))


def test_the_burst_shrinks_before_anyone_is_preempted():
  s = make(pages=5, burst=8)
  for i in range(2):
    ask(s, i, (i,) * 4, 12)
  carry_out(s)
  plan = s.plan()  # three pages are left, and bursts of 5 or more take two each
  assert (plan.decode, plan.burst, plan.preempted) == ((0, 1), 4, ())
  for slot in plan.decode:
    s.advance(slot, [1] * 4, False)
  plan = s.plan()
  assert (plan.decode, plan.burst, plan.preempted) == ((0,), 7, (1,))


def pressed(s: Scheduler, before=lambda: None) -> list:
  """Request 2 runs, then 1 of higher priority; two pages each are not enough. Those who finish."""
  ask(s, 2, (2, 2), 5, arrived=0.0, priority=-1)
  carry_out(s, 5)
  ask(s, 1, (1, 1), 4, arrived=1.0)
  carry_out(s, 6)
  before()
  lost, done = [], []
  for _ in range(9):
    plan = s.plan()
    lost += plan.preempted
    if plan.preempted:
      assert (plan.preempted, plan.prefill) == ((2,), ())
      (waits,) = (w for w in s.waiting if w.request.id == 2)
      assert (waits.slot, waits.pages, waits.computed) == (None, [], 0)
    done += fill(s, plan, 7)
    for slot in plan.decode:
      done.append(s.advance(slot, [7 + s.slots[slot].left], False))
    s.pages.check([r.pages for r in s.running])
  assert lost == [2]
  assert s.idle
  return [d for d in done if d]


def test_the_last_in_order_is_preempted_and_comes_back_with_what_it_wrote():
  done = pressed(make(pages=4, page=2, burst=1))
  assert [(d.request.id, d.written) for d in done] == [(1, [6, 10, 9, 8]), (2, [5, 6, 10, 7, 8])]
  assert [d.reused for d in done] == [0, 2]


def test_a_plan_that_preempts_admits_nobody():
  s = make(slots=3, pages=4, page=2, burst=1)
  done = pressed(s, lambda: ask(s, 3, (3,), 1, priority=1))
  assert [d.request.id for d in done] == [3, 1, 2]


def test_the_preempted_is_computed_with_new_weights_and_found_again():
  s = make(pages=4, page=2, burst=1)
  done = pressed(s, s.forget)
  assert [d.reused for d in done] == [0, 0]
  assert s.pages.cached == 3  # all that request 2 computed; of request 1 nothing


def test_what_was_reused_is_counted_over_all_admissions():
  s = make(pages=4, page=1, slots=1)
  ask(s, 1, (1, 2), 1)
  carry_out(s)
  ask(s, 2, (1, 2), 3)
  s.plan()
  sequence = s.slots[0]
  assert sequence.reused == 1
  s._preempt(sequence)
  s.plan()
  assert sequence.reused == 2


def test_one_page_more_than_the_tokens_need_has_to_be_there_if_it_can_be_used():
  for limit, enters in ((2, False), (1, True)):
    s = make(pages=3, burst=1)
    ask(s, 1, (1,) * 5, 2)
    ask(s, 2, (2,) * 4, limit)
    assert [c.id for c in s.plan().prefill] == [1, 2][: 1 + enters]


def test_a_burst_takes_no_pages_beyond_the_limit():
  s = make(burst=8)
  for id, limit in ((1, 2), (2, 9)):
    ask(s, id, (id,) * 4, limit)
  carry_out(s)
  assert s.plan().burst == 8
  assert [len(r.pages) for r in s.running] == [2, 3]


def test_forced_tokens_are_computed_and_then_sampled_behind():
  s = make(burst=2)
  ask(s, 1, (1, 2), 9)
  carry_out(s, 3)
  s.forced(1, [7, 8])
  (chunk,) = s.plan().prefill
  assert chunk == Chunk(0, 1, 2, (3, 7, 8), True)
  s.chunk_done(0, 3)
  s.advance(0, [4], False)
  assert s.slots[0].written == [3, 7, 8, 4]
  assert s.plan().decode == (0,)
  for tokens in ([], [1] * 5):
    with pytest.raises(ValueError, match='are forced'):
      s.forced(1, tokens)


def test_cancelled_requests_leave_nothing_behind():
  s = make(slots=1)
  for i in range(2):
    ask(s, i, (i,) * 6, 4)
  carry_out(s)
  assert s.cancel(1).written == []
  assert s.cancel(0).written == [1]
  assert s.idle
  assert s.pages.used == 0
  s.pages.check([])
  with pytest.raises(UserError, match='neither waits nor runs'):
    s.cancel(0)


def test_after_a_change_of_weights_old_prefixes_are_not_found():
  s = make(slots=3)
  ask(s, 1, tuple(range(9)), 3)
  carry_out(s)
  s.forget()
  ask(s, 2, tuple(range(9)), 3)
  (chunk,) = s.plan().prefill
  assert chunk.start == 0
  fill(s, s.plan()._replace(prefill=(chunk,)))
  s.cancel(1)
  ask(s, 3, tuple(range(9)), 3)
  s.plan()
  assert s.slots[0].pages[:2] == s.slots[1].pages[:2]


def test_nobody_waits_for_pages_of_old_weights():
  s = make(chunk=6)
  for i in range(2):
    ask(s, i, tuple(range(10)), 2)
  fill(s, s.plan())
  s.forget()
  assert [(c.id, c.start, len(c.tokens)) for c in s.plan().prefill] == [(0, 6, 4), (1, 0, 2)]


@pytest.mark.parametrize(
  'request_, complaint',
  [
    (Request(1, (), 1), 'prompt is empty'),
    (Request(1, (1,), 0), 'limit=0'),
    (Request(1, (1,) * 30, 3), 'longest=32'),
    (Request(1, (1,) * 10, 8), '5 pages of 4 positions and there are 4'),
    (Request(0, (1,), 1), 'id is in use'),
  ],
)
def test_what_can_never_run_is_refused_in_one_line(request_, complaint):
  s = make(pages=4)
  ask(s, 0, (1,), 1)
  with pytest.raises(UserError, match=complaint) as error:
    s.submit(request_)
  assert '\n' not in str(error.value)
  assert len(s.waiting) == 1


def test_a_request_that_just_fits_the_pool_runs():
  s = make(pages=4, burst=1)
  ask(s, 1, (1,) * 15, 2)
  assert [d.written for _ in range(2) for d in carry_out(s)] == [[1, 1]]


def test_reports_that_do_not_follow_the_plan_are_refused():
  s = make()
  ask(s, 1, (1, 2, 3), 4)
  with pytest.raises(ValueError, match='slot 0 is empty'):
    s.chunk_done(0, 1)
  s.plan()
  with pytest.raises(ValueError, match='call chunk_done first'):
    s.advance(0, [1], False)
  with pytest.raises(ValueError, match='a chunk of 4 tokens'):
    s.chunk_done(0, 4)
  s.chunk_done(0, 3)
  with pytest.raises(ValueError, match='call advance before plan'):
    s.plan()
  for tokens in ([], [1] * 3):  # its page has one place left
    with pytest.raises(ValueError, match='expected 1 to 2'):
      s.advance(0, tokens, False)
  s = make()
  ask(s, 1, (1, 2), 1)
  s.plan()
  s.chunk_done(0, 2)
  with pytest.raises(ValueError, match='expected 1 to 1'):  # by its limit
    s.advance(0, [1, 1], False)


def test_sizes_below_one_are_refused():
  for name in ('slots', 'pages', 'page', 'longest', 'chunk', 'burst'):
    with pytest.raises(ValueError, match=f'{name}=0'):
      make(**{name: 0})


def calls(f) -> int:
  """Calls of Python and C functions that f makes."""
  seen = []
  before = sys.getprofile()
  sys.setprofile(lambda frame, event, arg: seen.append(event) if event.endswith('call') else None)
  try:
    f()
  finally:
    sys.setprofile(before)
  return len(seen)


def crowd(slots: int, waiting: int) -> Scheduler:
  """All slots decode, and more wait."""
  s = make(slots=slots, pages=slots * 8, page=16, longest=1024, chunk=10**6)
  for i in range(slots + waiting):
    ask(s, i, (i, *range(40)), 80)
  carry_out(s)
  carry_out(s)
  return s


def test_a_plan_costs_as_much_as_there_are_slots_however_many_wait():
  few, many = crowd(64, 100), crowd(64, 3000)
  costs = [calls(s.plan) for s in (few, many)]
  assert costs[0] == costs[1] <= 64 * 50
  assert calls(crowd(16, 100).plan) < costs[0] / 3


def test_while_chunks_follow_on_chunks_a_burst_is_one_token():
  s = make(slots=3, pages=40, chunk=4, burst=8)
  for id in (1, 2, 3):
    ask(s, id, (id,) * 4, 20)
  carry_out(s)
  assert s.plan().burst == 1  # the third still waits, with a slot for it
  s = make(slots=2, pages=40, chunk=4, burst=8)
  for id in (1, 2, 3):
    ask(s, id, (id,) * 4, 20)
  carry_out(s)
  assert s.plan().burst == 8  # it waits for a slot
