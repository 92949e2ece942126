"""Continuous batching: each request gets what it would alone, whatever happens around it."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.core.errors import UserError
from r1jax.engine.batch import samples
from r1jax.engine.budget import Budget, Marks
from r1jax.engine.continuous import Continuous, Request
from r1jax.engine.generate import generate
from r1jax.engine.sampling import RequestSampling
from r1jax.engine.scheduler import Config
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

MIXED = ModelConfig(
  29, 16,
  (
    Layer(MLA(heads=2, nope=4, rope=4, value=4, kv_latent=8, std=0.4), MoE(8, 4, 2, std=0.4)),
    Layer(GQA(2, 1, 8, std=0.4), Dense(16, std=0.4)),
  ),
  std=0.6, remat='none',
)  # fmt: skip
STOPS, LIMIT, GROUP = (3, 5), 12, 3
RNG = np.random.default_rng(0)
PROMPTS = [tuple(RNG.integers(6, 29, n).tolist()) for n in (9, 4, 17, 1)]
SAMPLING = Sampling(0.9, top_k=9, top_p=0.95)


@pytest.fixture(scope='module', autouse=True)
def quickly(quick_compilation):
  """Compiling dominates these tests."""


@pytest.fixture(scope='module')
def params():
  return place.init(Transformer(MIXED), jax.random.key(0), None, dummy_inputs(MIXED))


def keys(count):
  return prng.fold_rows(jax.random.key(7), np.arange(count))


def requests(sampling=SAMPLING, limit=LIMIT):
  """Each prompt GROUP times, every sample with its own key."""
  data = np.asarray(jax.random.key_data(keys(len(PROMPTS) * GROUP)))
  asked = RequestSampling(sampling.temperature, sampling.top_k, sampling.top_p)
  prompts = [p for p in PROMPTS for _ in range(GROUP)]
  return [Request(p, limit, tuple(d.tolist()), asked) for p, d in zip(prompts, data)]


@pytest.fixture(scope='module')
def expected(request, params):
  """(sampling, what the static engine writes)."""
  rows = [p for p in PROMPTS for _ in range(GROUP)]
  lengths = np.array([len(r) for r in rows], np.int32)
  prompts = np.zeros((len(rows), 17), np.int32)
  for to, r in zip(prompts, rows):
    to[: len(r)] = r
  f = lambda params: generate(
    params, prompts, lengths, keys(len(rows)), cfg=MIXED, sampling=request.param, stops=STOPS,
    limit=LIMIT,
  )  # fmt: skip
  return request.param, lengths, jax.device_get(jax.jit(f)(params))


ENGINES = {
  'roomy': Config(slots=12, pages=64, page=4, longest=32),
  'few slots, small chunks': Config(slots=3, pages=64, page=4, longest=32, chunk=5, burst=3),
  'few pages': Config(slots=6, pages=11, page=4, longest=32, chunk=9, burst=4),
  'no reuse': Config(slots=5, pages=64, page=8, longest=32, burst=1, reuse=False),
}


@pytest.mark.parametrize(
  ('expected', 'how'),
  [*((SAMPLING, name) for name in ENGINES), (Sampling(0.0), 'roomy')],
  indirect=['expected'],
)
def test_contract_04_every_completion_is_the_static_engines(params, expected, how):
  sampling, lengths, want = expected
  engine = Continuous(MIXED, STOPS, ENGINES[how])
  done = {c.number: c for c in engine.generate(params, requests(sampling))}
  assert sorted(done) == list(range(len(lengths)))
  for i, c in done.items():
    n = want.length_B[i]
    np.testing.assert_array_equal(c.tokens, want.tokens_BT[i, :n])
    np.testing.assert_allclose(c.logp, want.logp_BT[i, :n], atol=2e-5)
    assert (c.ended == 'stop') == want.stopped_B[i]
    end = lengths[i] + n - 1  # the last token is never read
    theirs = jax.tree.map(lambda r, i=i, end=end: r[:, i, :end], want.routes)
    ours = jax.tree.map(lambda r, end=end: r[:, :end], c.routes)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  engine.scheduler.pages.check([])
  reused = engine.counts['reused']
  assert reused == 0 if how == 'no reuse' else reused > 0
  if how == 'few pages':
    assert engine.counts['preempted'] > 0
  if how == 'roomy':  # a group's prompt is computed once, up to its last page
    assert engine.counts['filled'] < sum(lengths)


def test_other_weights_find_no_prefix_of_the_old_ones(params):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'])
  other = jax.tree.map(lambda x: x * 1.1, params)
  first = {c.number: c for c in engine.generate(params, requests())}
  again = {c.number: c for c in engine.generate(other, requests())}
  fresh = {
    c.number: c for c in Continuous(MIXED, STOPS, ENGINES['roomy']).generate(other, requests())
  }
  for number, c in fresh.items():
    np.testing.assert_array_equal(again[number + len(fresh)].tokens, c.tokens)
  assert any(len(first[n].tokens) != len(fresh[n].tokens) for n in fresh)


def test_kept_sets_hold_every_token_and_int8_pages_stay_near(params):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'], support=9)
  for c in engine.generate(params, requests()):
    assert c.support.shape == (len(c.tokens), 9)
    assert (c.support == c.tokens[:, None]).any(1).all()
  wide = Continuous(MIXED, STOPS, ENGINES['roomy'])
  narrow = Continuous(MIXED, STOPS, ENGINES['roomy'], stored='int8')
  a, b = ({c.number: c for c in e.generate(params, requests())} for e in (wide, narrow))
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
    (Request((99,), 3, good[0].seed), 'token 99, the vocabulary has 29'),
    (Request((7,), 3, (1,)), 'seed has 1 words'),
  ):
    with pytest.raises(UserError, match=said):
      engine.submit(bad)
  cancelled = engine.submit(good[1])
  engine.cancel(cancelled)
  (only,) = engine.generate(params, [])
  assert only.number == 0
  engine.scheduler.pages.check([])


@pytest.mark.parametrize('expected', [SAMPLING], indirect=True)
def test_samples_are_those_of_the_static_engine_row_for_row(params, expected):
  sampling, lengths, want = expected
  prompts = np.zeros((len(lengths), 17), np.int32)
  for to, r in zip(prompts, requests()):
    to[: len(r.prompt)] = r.prompt
  engine = Continuous(MIXED, STOPS, ENGINES['few slots, small chunks'])
  got = samples(engine, params, prompts, lengths, keys(len(lengths)), sampling, LIMIT)
  assert got.support_BTK is None
  for name in ('tokens_BT', 'length_B', 'stopped_B'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=2e-5)
  # Behind a row's end the static engine keeps what its padding chose.
  read_BM = np.arange(17 + LIMIT) < (lengths + want.length_B - 1)[:, None]
  theirs = jax.tree.map(lambda r: np.where(read_BM[..., None], r, 0), want.routes)
  jax.tree.map(np.testing.assert_array_equal, got.routes, theirs)


CLOSE, OPEN, FINISH = 26, 27, 28
MARKS = Marks(((CLOSE,), (OPEN,), (FINISH,)), frozenset(STOPS), str)


def bounded(budget, limit=LIMIT, **fields):
  """Sampled requests whose thought a budget bounds, on an engine with the marks."""
  asked = [dataclasses.replace(r, budget=budget, limit=limit) for r in requests()]
  return Continuous(MIXED, STOPS, ENGINES['few slots, small chunks'], marks=MARKS, **fields), asked


def test_a_thought_ends_at_its_budget_and_an_answer_follows(params):
  engine, asked = bounded(Budget(thinking=3, reserve=3))
  plain = Continuous(MIXED, STOPS, ENGINES['roomy'])
  free = {c.number: c for c in plain.generate(params, requests())}
  forced = 0
  for c in engine.generate(params, asked):
    alone = free[c.number].tokens
    assert len(c.tokens) == len(c.logp) <= LIMIT and c.used.tokens == len(c.tokens)
    if c.used.thought == 'thinking budget':
      forced += 1
      assert c.tokens[3:5].tolist() == [CLOSE, OPEN] and c.logp[3:5].tolist() == [0, 0]
      np.testing.assert_array_equal(c.tokens[:3], alone[:3])  # until then it is left alone
      for layer in jax.tree.leaves(c.routes):
        assert layer.shape[1] == len(asked[c.number].prompt) + len(c.tokens)
      if c.ended == 'length':
        assert c.tokens[-1] == FINISH and len(c.tokens) == LIMIT
    else:
      assert c.used.thinking <= 3
  assert forced > len(asked) // 3
  engine.scheduler.pages.check([])


def test_what_follows_forced_tokens_is_what_they_would_be_followed_by(params):
  """The answer is that of a prompt that ends in thought and tags, with the same key."""
  engine, asked = bounded(Budget(thinking=2, reserve=4))
  done = {c.number: c for c in engine.generate(params, asked)}
  number = next(n for n, c in done.items() if c.used.thought == 'thinking budget')
  c, r = done[number], asked[number]
  prompt = (*r.prompt, *c.tokens[:4].tolist())
  again = dataclasses.replace(r, prompt=prompt, limit=LIMIT - 4, budget=None)
  (alone,) = Continuous(MIXED, STOPS, ENGINES['roomy']).generate(params, [again])
  n = min(len(c.tokens) - 4, len(alone.tokens)) - 1
  assert n > 0
  np.testing.assert_array_equal(c.tokens[4 : 4 + n], alone.tokens[:n])


def test_a_refusal_drops_the_answer_and_time_is_the_clocks(params):
  now = iter(range(10_000))
  engine, asked = bounded(
    Budget(seconds=6.0, reserve=1, fallback='refuse'), clock=lambda: float(next(now))
  )
  done = list(engine.generate(params, asked[:3]))
  assert {c.number for c in done} == {0, 1, 2}
  assert any(c.ended == 'refused' and c.used.cause == 'time' for c in done)
  for c in done:
    if c.ended == 'refused':
      assert c.tokens[-2:].tolist() == [OPEN, FINISH]
  engine.scheduler.pages.check([])


def test_a_budget_needs_marks(params):
  engine = Continuous(MIXED, STOPS, ENGINES['roomy'])
  with pytest.raises(UserError, match='request 0: a budget needs the tags'):
    engine.submit(dataclasses.replace(requests()[0], budget=Budget()))
