"""Continuous batching: each request gets what it would alone, whatever happens around it."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.engine.budget import Budget, Marks
from r1jax.engine.continuous import Continuous
from r1jax.engine.drafts import Modules, NGram
from r1jax.engine.plan import Config
from r1jax.engine.requests import Failed, Piece, Request
from r1jax.engine.sampling import RequestSampling
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from tests.engine import mixed
from tests.engine.mixed import LENGTHS, LIMIT, MIXED, SAMPLING, STOPS, requests


@pytest.fixture(scope='module')
def params():
  return mixed.params()


@pytest.fixture(scope='module')
def expected(request, params):
  """(sampling, what the static engine writes)."""
  return request.param, mixed.static(params, request.param)


@pytest.fixture(scope='module')
def roomy():
  return Continuous(MIXED, STOPS, ENGINES['roomy'])


@pytest.fixture(scope='module')
def free(params, roomy):
  """What nobody bounds."""
  return write(roomy, params, requests())


def write(engine, params, asked):
  """Completions of the requests, numbered from 0."""
  first = engine.asked
  engine.load(params)
  return {c.number - first: c for c in engine.generate(asked)}


def equal(done, want):
  """Every completion is a row of the static engine's."""
  assert sorted(done) == list(range(len(LENGTHS)))
  for i, c in done.items():
    n = want.length_B[i]
    np.testing.assert_array_equal(c.tokens, want.tokens_BT[i, :n])
    np.testing.assert_allclose(c.logp, want.logp_BT[i, :n], atol=2e-5)
    assert (c.ended == 'stop') == want.stopped_B[i]
    end = LENGTHS[i] + n - 1  # the last token is never read
    theirs = jax.tree.map(lambda r, i=i, end=end: r[:, i, :end], want.routes)
    ours = jax.tree.map(lambda r, end=end: r[:, :end], c.routes)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


ENGINES = {
  'roomy': Config(slots=12, pages=64, page=8, longest=32, chunk=32),
  'few slots, small chunks': Config(slots=3, pages=64, page=8, longest=32, chunk=5, burst=3),
  'few pages': Config(slots=4, pages=9, page=4, longest=32, chunk=8, burst=4),
  'no reuse': Config(slots=4, pages=64, page=8, longest=32, chunk=8, burst=1, reuse=False),
}


@pytest.mark.parametrize(
  ('expected', 'how'),
  [
    *((SAMPLING, name) for name in ENGINES),
    pytest.param(Sampling(0.0), 'roomy', marks=pytest.mark.slow),
  ],
  indirect=['expected'],
)
def test_contract_04_every_completion_is_the_static_engines(params, expected, how):
  sampling, want = expected
  engine = Continuous(MIXED, STOPS, ENGINES[how])
  equal(write(engine, params, requests(sampling)), want)
  engine.shards.all[0].pages.check([])
  reused = engine.counts['reused']
  assert reused == 0 if how == 'no reuse' else reused > 0
  if how == 'few pages':
    assert engine.counts['preempted'] > 0
  if how == 'roomy':  # a group's prompt is computed once, up to its last page
    assert engine.counts['filled'] < sum(LENGTHS)


def test_other_weights_find_no_prefix_of_the_old_ones(params, roomy, free):
  other = jax.tree.map(lambda x: x * 1.1, params)
  write(roomy, params, requests())  # whose prefixes are there
  again = write(roomy, other, requests())
  roomy.release()
  fresh = write(roomy, other, requests())
  for number, c in fresh.items():
    np.testing.assert_array_equal(again[number].tokens, c.tokens)
  assert any(len(free[n].tokens) != len(fresh[n].tokens) for n in fresh)


def test_kept_sets_hold_every_token_and_int8_pages_stay_near(params, free):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'], support=9)
  for c in write(engine, params, requests()).values():
    assert c.support.shape == (len(c.tokens), 9)
    assert (c.support == c.tokens[:, None]).any(1).all()
  narrow = Continuous(MIXED, STOPS, ENGINES['roomy'], stored='int8')
  a, b = free, write(narrow, params, requests())
  first = [(a[i].logp[0], b[i].logp[0]) for i in a if a[i].tokens[0] == b[i].tokens[0]]
  assert len(first) >= len(a) - 2
  np.testing.assert_allclose(*zip(*first), atol=0.1)


def test_what_cannot_be_served_says_so_and_harms_nobody(params):
  engine = Continuous(MIXED, STOPS, ENGINES['few pages'])
  good = requests()[:2]
  engine.submit(good[0])
  for bad, said in (
    (Request((), 3, good[0].seed), 'the prompt is empty'),
    (Request((7,) * 40, 3, good[0].seed), 'exceed longest=32'),
    (Request((99,), 3, good[0].seed), 'token 99, the vocabulary has 30'),
    (Request((7,), 3, (1,)), 'seed has 1 words'),
  ):
    with pytest.raises(UserError, match=said):
      engine.submit(bad)
  cancelled = engine.submit(good[1])
  engine.cancel(cancelled)
  engine.load(params)
  bad = Request((7,) * 40, 3, good[0].seed)
  *rest, last = engine.generate([bad, good[1]])
  assert {e.number for e in (*rest, last)} == {0, 6, 7}
  (failed,) = (e for e in (*rest, last) if isinstance(e, Failed))
  assert failed.number == 6 and 'exceed longest=32' in failed.error
  engine.shards.all[0].pages.check([])


CLOSE, OPEN, FINISH = 26, 27, 28
MARKS = Marks(((CLOSE,), (OPEN,), (FINISH,)), frozenset(STOPS), str)


def bounded(budget, limit=LIMIT, **fields):
  """Sampled requests whose thought a budget bounds, on an engine with the marks."""
  asked = [dataclasses.replace(r, budget=budget, limit=limit) for r in requests()]
  return Continuous(MIXED, STOPS, ENGINES['few slots, small chunks'], marks=MARKS, **fields), asked


def test_a_thought_ends_at_its_budget_and_an_answer_follows(params, free):
  engine, asked = bounded(Budget(thinking=3, reserve=3))
  forced = 0
  for c in write(engine, params, asked).values():
    alone = free[c.number].tokens
    assert len(c.tokens) == len(c.logp) <= LIMIT and c.used.tokens == len(c.tokens)
    if c.used.thought == 'thinking budget':
      forced += 1
      assert c.tokens[3:5].tolist() == [CLOSE, OPEN] and c.logp[3:5].tolist() == [0, 0]
      np.testing.assert_array_equal(c.tokens[:3], alone[:3])  # until then it is left alone
      for layer in jax.tree.leaves(c.routes):
        assert layer.shape[1] == len(asked[c.number].prompt) + len(c.tokens)
      if c.ended == 'length' and FINISH not in c.tokens[5:-1]:
        assert c.tokens[-1] == FINISH and len(c.tokens) == LIMIT
    else:
      assert c.used.thinking <= 3
  assert forced > len(asked) // 3
  engine.shards.all[0].pages.check([])


def test_what_follows_forced_tokens_is_what_they_would_be_followed_by(params, roomy):
  """The answer is that of a prompt that ends in thought and tags, with the same key."""
  engine, asked = bounded(Budget(thinking=2, reserve=4))
  done = write(engine, params, asked)
  number = next(
    n for n, c in done.items() if c.used.thought == 'thinking budget' and len(c.tokens) > 5
  )
  c, r = done[number], asked[number]
  prompt = (*r.prompt, *c.tokens[:4].tolist())
  again = dataclasses.replace(r, prompt=prompt, limit=LIMIT - 4, budget=None)
  (alone,) = write(roomy, params, [again]).values()
  n = min(len(c.tokens) - 4, len(alone.tokens)) - 1
  assert n > 0
  np.testing.assert_array_equal(c.tokens[4 : 4 + n], alone.tokens[:n])


def test_a_refusal_drops_the_answer_and_time_is_the_clocks(params):
  now = iter(range(10_000))
  engine, asked = bounded(
    Budget(seconds=6.0, reserve=1, fallback='refuse'), clock=lambda: float(next(now))
  )
  done = list(write(engine, params, asked[:3]).values())
  assert {c.number for c in done} == {0, 1, 2}
  assert any(c.ended == 'refused' and c.used.cause == 'time' for c in done)
  for c in done:
    if c.ended == 'refused':
      assert c.tokens[-2:].tolist() == [OPEN, FINISH]
  engine.shards.all[0].pages.check([])


def test_a_budget_needs_marks(params):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'])
  with pytest.raises(UserError, match='request 0: a budget needs the tags'):
    engine.submit(dataclasses.replace(requests()[0], budget=Budget()))


@pytest.mark.parametrize(
  ('expected', 'drafting'),
  [
    (SAMPLING, Modules(2)),
    (Sampling(0.0), NGram(3)),
    pytest.param(Sampling(0.0), Modules(2), marks=pytest.mark.slow),
    pytest.param(SAMPLING, NGram(3), marks=pytest.mark.slow),
  ],
  indirect=['expected'],
  ids=str,
)
def test_contract_04_drafts_change_no_token(params, expected, drafting):
  sampling, want = expected
  engine = Continuous(MIXED, STOPS, ENGINES['few pages'], drafting=drafting)
  equal(write(engine, params, requests(sampling)), want)
  assert engine.counts['drafted'] > 0 and engine.counts['preempted'] > 0
  assert 0 <= engine.counts['accepted'] < engine.counts['drafted']


@pytest.mark.parametrize(
  'axes',
  [pytest.param({'data': 8}, marks=pytest.mark.slow), {'fsdp': 2, 'expert': 2, 'tensor': 2}],
  ids=str,
)
def test_contract_04_a_mesh_writes_what_one_device_does(params, axes):
  config = Config(slots=8, pages=32, page=8, longest=32, chunk=8, burst=4)
  mesh = meshes.make(Mesh(**axes))
  engine = Continuous(MIXED, STOPS, config, mesh=mesh, drafting=Modules(1))
  equal(write(engine, params, requests()), mixed.static(params))
  for s in engine.shards.all:
    s.pages.check([])


def test_penalties_and_min_p_are_each_requests_own(params, roomy, free):
  sharp = RequestSampling(0.9, min_p=1.0, repetition=1.5, frequency=0.5)
  asked = [dataclasses.replace(r, sampling=sharp if i % 2 else r.sampling)
           for i, r in enumerate(requests())]  # fmt: skip
  both = write(roomy, params, asked)
  for i in range(0, len(both), 2):
    np.testing.assert_array_equal(both[i].tokens, free[i].tokens)
  assert any(
    (both[i].tokens != free[i].tokens[: len(both[i].tokens)]).any()
    for i in range(1, len(both), 2)
    if len(free[i].tokens) >= len(both[i].tokens)
  )


LETTERS = [chr(ord('a') + i % 26) for i in range(MIXED.vocab)]


def spell(ids):
  """A letter a token."""
  return ''.join(LETTERS[i] for i in ids)


def test_stop_strings_and_tokens_end_a_completion_and_pieces_are_its_text(params, free):
  number = next(n for n, c in free.items() if len(c.tokens) > 6)
  tokens = free[number].tokens.tolist()
  base = dataclasses.replace(requests()[number], stream=True)
  stop = spell(tokens[2:4])
  first = spell(tokens).index(stop) + len(stop)
  asked = [
    base,
    dataclasses.replace(base, stops=(stop,)),
    dataclasses.replace(base, stop_tokens=(tokens[4],)),
  ]
  engine = Continuous(MIXED, STOPS, ENGINES['few slots, small chunks'], decode=spell)
  engine.load(params)
  events = list(engine.stream(asked))
  done = {e.number: e for e in events if not isinstance(e, Piece)}
  for n, c in done.items():
    pieces = [e for e in events if isinstance(e, Piece) and e.number == n]
    assert ''.join(p.text for p in pieces) == c.text
    assert [t for p in pieces for t in p.tokens] == c.tokens.tolist()
    assert len(pieces) > 1
  assert done[0].tokens.tolist() == tokens and done[0].stop is None
  assert done[1].tokens.tolist() == tokens[:first] and done[1].stop == stop
  assert done[1].ended == 'stop' and done[1].text == spell(tokens[: first - len(stop)])
  assert done[2].tokens.tolist() == tokens[: tokens.index(tokens[4]) + 1]
  assert done[2].ended == 'stop' and done[2].stop is None
  engine.shards.all[0].pages.check([])


def test_versions_are_told_and_weights_are_never_copied(params, free):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'])
  with pytest.raises(ValueError, match='no weights are loaded'):
    list(engine.generate(requests()[:1]))
  asked = next(r for n, r in enumerate(requests()) if len(free[n].tokens) > 1)
  engine.load(params, 4)
  engine.submit(asked)
  assert all(a is b for a, b in zip(jax.tree.leaves(engine.device.params), jax.tree.leaves(params)))
  engine.step()
  engine.load(jax.tree.map(lambda x: x * 1.1, params))
  (done,) = engine.generate([])
  assert done.versions == (4, 5)
  with pytest.raises(ValueError, match='version 5 of the weights after 5'):
    engine.load(params, 5)
  engine.release()
  again = write(engine, params, requests())
  assert {c.versions for c in again.values()} == {(6, 6)}


def test_one_who_waits_too_long_is_told_so(params):
  now = [0.0]
  config = Config(slots=1, pages=8, page=8, longest=32, chunk=16, burst=4)
  engine = Continuous(MIXED, (), config, marks=MARKS, clock=lambda: now[0])
  engine.load(params)
  first, second = requests()[:2]
  engine.submit(first)
  waits = engine.submit(dataclasses.replace(second, budget=Budget(seconds=5.0, reserve=1)))
  engine.step()
  now[0] = 6.0
  done = {c.number: c for c in engine.generate([])}
  assert done[waits].ended == 'time' and done[waits].tokens.tolist() == [CLOSE, OPEN, FINISH]
  assert len(done[0].tokens) == LIMIT


def test_who_leaves_early_finds_the_rest_later_and_a_failed_step_harms_nobody(params, free):
  engine = Continuous(MIXED, STOPS, ENGINES['few slots, small chunks'])
  engine.load(params)
  done = {}
  for c in engine.generate(requests()):
    done[c.number] = c
    if len(done) == 2:
      break
  real, engine.device.fetch = engine.device.fetch, lambda *_: 1 / 0
  with pytest.raises(ZeroDivisionError):
    engine.step()
  engine.device.fetch = real
  done |= {c.number: c for c in engine.generate([])}
  assert {n: c.tokens.tolist() for n, c in done.items()} == {
    n: c.tokens.tolist() for n, c in free.items()
  }
  engine.shards.all[0].pages.check([])


def test_a_budget_that_ends_while_tags_are_computed_tells_the_experts_it_knows(params):
  now = [0.0]
  config = Config(slots=1, pages=8, page=8, longest=32, chunk=8, burst=4)
  engine = Continuous(MIXED, (), config, marks=MARKS, clock=lambda: now[0])
  engine.load(params)
  engine.submit(dataclasses.replace(requests()[0], budget=Budget(thinking=3, seconds=9, reserve=1)))
  while not engine.counts['written'] >= 3:
    engine.step()
  (row,) = (r for r, _ in engine.shards.running())
  assert engine.shards.at(row).filling
  now[0] = 10.0
  (done,) = engine.generate([])
  read = len(requests()[0].prompt) + 2  # the thought but its last token
  for ids in jax.tree.leaves(done.routes):
    assert ids[:, :read].any(-1).all() and not ids[:, read:].any()
