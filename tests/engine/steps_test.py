"""The compiled steps: plain ones against `generate`, drafted ones against plain ones.

`write` is the least loop over them: chunks of prompts, then bursts, with pages for what a burst may
write and not one more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine import drafts, steps
from r1jax.engine.drafts import Modules, NGram
from r1jax.engine.generate import generate
from r1jax.engine.sampling import RequestSampling, controls
from r1jax.engine.speculative import module_caches
from r1jax.kernels.logprob.truncate import FILLER, Sampling
from r1jax.model import cache as caches
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import place

V, SIZE, PAGES, SUPPORT, FOREVER = 9, 2, 12, 6, 1 << 30
MODULES = (
  Layer(GQA(2, 1, 4, std=0.4), Dense(16, std=0.4)),
  Layer(MLA(heads=2, nope=4, rope=4, value=4, kv_latent=8, std=0.4), MoE(8, 4, 2, std=0.4)),
)


def config(modules):
  """A layer of each kind and the first `modules` prediction modules."""
  return ModelConfig(V, 16, MODULES[::-1], mtp=MODULES[:modules], std=0.6, remat='none')


PROMPTS = [(1, 2, 3, 1, 2), (4, 5, 6, 7), (2,), (8, 8, 1), (5, 1, 5, 1, 5, 1, 5)]
LIMITS = np.array([14, 13, 14, 5, 11])
B, STOPS = len(PROMPTS), (0,)
KEYS = prng.fold_rows(jax.random.key(1), np.arange(B))
SEEDS = np.asarray(jax.random.key_data(KEYS))
GREEDY = [RequestSampling(0.0)] * B
WARM = RequestSampling(0.9, top_k=5)
MIXED = [GREEDY[0], WARM, RequestSampling(0.9, top_k=4, top_p=0.9), WARM, GREEDY[0]]
PENALIZED = [
  RequestSampling(s.temperature, s.top_k, s.top_p, repetition=r, presence=p, frequency=f)
  for s, r, p, f in zip(
    MIXED, (1.3, 1, 0.8, 1, 1.2), (0, 0.5, 0, -0.7, 0.4), (0.3, 0, 0.6, 0, -0.2), strict=True
  )
]
SETTINGS = {'mixed': MIXED, 'penalized': PENALIZED}


@functools.cache
def weights(modules):
  cfg = config(modules)
  return place.init(Transformer(cfg), jax.random.key(0), None, dummy_inputs(cfg))


@functools.cache
def program(step, cfg, kinds, drafting):
  """A compiled step; bursts have room for 5 tokens."""
  more = {'stops': STOPS, 'most': 5} if step is steps.decode else {}
  return jax.jit(functools.partial(step, cfg=cfg, kinds=kinds, drafting=drafting, **more))


def rows(texts, tokens, settings, kinds, drafting):
  """What the steps are told, with pages for `tokens` tokens of each text and no more."""
  table = np.full((B, PAGES), -1, np.int32)
  for b, n in enumerate(tokens):
    table[b, : -(-n // SIZE)] = b * PAGES + np.arange(-(-n // SIZE))
  history = None
  if kinds.penalties or isinstance(drafting, NGram):
    filled = np.zeros((B, 24), np.int32)
    for to, text in zip(filled, texts):
      to[: len(text)] = text
    history = steps.History(filled, np.array([len(p) for p in PROMPTS], np.int32))
  return steps.Rows(table, SEEDS, settings, history)


def fill(params, cfg, kinds, settings, drafting, chunk=8, texts=PROMPTS, ahead=0):
  """(memory, what the last chunk of each row gave) of texts, without their last `ahead` tokens."""
  make = lambda c: caches.paged(c, B * PAGES, SIZE)
  modules = module_caches(cfg, make) if isinstance(drafting, Modules) else ()
  memory, last, ends = steps.Memory(make(cfg), modules), [None] * B, [len(t) - ahead for t in texts]
  given = rows(texts, [n + 2 * ahead for n in ends], settings, kinds, drafting)
  for start in range(0, max(ends), chunk):
    tokens, length = np.zeros((B, chunk), np.int32), np.zeros(B, np.int32)
    follows = np.full(B, -1, np.int32)
    for b, (text, end) in enumerate(zip(texts, ends)):
      to = max(start, min(start + chunk, end))
      length[b], tokens[b, : to - start] = to - start, text[start:to]
      follows[b] = text[to] if to < len(text) else -1
    memory, made = program(steps.prefill, cfg, kinds, drafting)(
      params, memory, tokens, follows, np.full(B, start, np.int32), length, given
    )
    made = jax.device_get(made)._replace(routes=())
    for b in np.flatnonzero(length):
      last[b] = jax.tree.map(lambda x, b=b: x[b], made)
  return memory, jax.tree.map(lambda *x: np.stack(x), *last)


def write(params, cfg, asked, drafting):
  """(texts, log-probabilities, supports, routes by row; drafts offered and kept)."""
  settings, kinds = controls(asked, SUPPORT)
  memory, first = fill(params, cfg, kinds, settings, drafting)
  texts = [[*p, int(t)] for p, t in zip(PROMPTS, first.drawn.token_B)]
  logps, supports = [[x] for x in first.drawn.logp_B], [[x] for x in first.drawn.support_BK]
  routes, counts = [[] for _ in range(B)], np.zeros((2, B), int)
  draft, stopped, decode = first.draft_BK, np.isin(first.drawn.token_B, STOPS), 0
  while True:
    written = np.array([len(t) - len(p) for t, p in zip(texts, PROMPTS)])
    left = np.where(stopped, 0, LIMITS - written).astype(np.int32)
    if not left.any():
      return texts, logps, supports, routes, counts
    burst = (3, 1, 5, 2)[decode % 4]
    position, newest = np.array([(len(t) - 1, t[-1]) for t in texts], np.int32).T
    given = rows(texts, position + np.minimum(burst, left), settings, kinds, drafting)
    memory, made = program(steps.decode, cfg, kinds, drafting)(
      params, memory, newest, draft, position, left, given, np.int32(burst), np.int32(FOREVER)
    )
    made, decode = jax.device_get(made), decode + 1
    assert made.count_B.max() <= burst and (made.count_B <= left).all()
    assert ((made.count_B > 0) == (left > 0)).all()
    for b, n in enumerate(made.count_B):
      texts[b] += made.token_BN[b, :n].tolist()
      logps[b] += made.logp_BN[b, :n].tolist()
      supports[b] += list(made.support_BNK[b, :n])
      routes[b].append(jax.tree.map(lambda r, b=b, n=n: r[:, b, :n], made.routes))
      assert not made.token_BN[b, n:].any()
    draft, stopped = made.draft_BK, stopped | made.stopped_B
    counts += [made.drafted_B, made.accepted_B]


@functools.cache
def plain(name):
  """Without drafts; more modules leave the other weights as they are."""
  return write(weights(1), config(1), SETTINGS[name], None)


def joined(routes):
  return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *routes)


@pytest.mark.parametrize('sampling', [Sampling(0.9, 5)])
def test_contract_04_plain_bursts_write_what_generate_does(sampling):
  """Tokens, log-probabilities, kept sets and experts, row by row up to each one's limit."""
  cfg, lengths = config(1), np.array([len(p) for p in PROMPTS])
  prompts = np.zeros((B, lengths.max()), np.int32)
  for to, p in zip(prompts, PROMPTS):
    to[: len(p)] = p
  f = functools.partial(
    generate, cfg=cfg, sampling=sampling, stops=STOPS, limit=LIMITS.max(), keep_support=True
  )
  want = jax.device_get(jax.jit(f)(weights(1), prompts, lengths, KEYS))
  asked = [RequestSampling(sampling.temperature, sampling.top_k)] * B
  texts, logps, supports, routes, _ = write(weights(1), cfg, asked, None)
  for b, (p, n) in enumerate(zip(PROMPTS, np.minimum(want.length_B, LIMITS))):
    assert texts[b][len(p) :] == want.tokens_BT[b, :n].tolist()
    np.testing.assert_allclose(logps[b], want.logp_BT[b, :n], atol=1e-5)
    ids = np.stack(supports[b])  # of room for six, five
    np.testing.assert_array_equal(ids[:, :5], want.support_BTK[b, :n])
    assert (ids[:, 5:] == FILLER).all()
    if n > 1:
      its = jax.tree.map(lambda r, b=b, p=p, n=n: r[:, b, len(p) : len(p) + n - 1], want.routes)
      jax.tree.map(np.testing.assert_array_equal, joined(routes[b]), its)


@pytest.mark.parametrize(
  ('drafting', 'asked', 'modules'),
  [
    pytest.param(Modules(1), 'mixed', 1, marks=pytest.mark.slow),
    pytest.param(Modules(2), 'mixed', 1, marks=pytest.mark.slow),
    pytest.param(Modules(2), 'mixed', 2, marks=pytest.mark.slow),
    (NGram(3), 'mixed', 1),
    (Modules(2), 'penalized', 1),
    pytest.param(NGram(2, longest=2), 'penalized', 1, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_contract_04_drafts_change_no_token(drafting, asked, modules):
  """Nor log-probabilities, kept sets and experts, over bursts of several lengths."""
  want = plain(asked)
  made = write(weights(modules), config(modules), SETTINGS[asked], drafting)
  assert made[0] == want[0]
  for ours, theirs in zip(made[1], want[1]):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, made[2], want[2])
  for ours, theirs in zip(made[3], want[3]):
    if theirs:
      jax.tree.map(np.testing.assert_array_equal, joined(ours), joined(theirs))
  drafted, accepted = made[4]
  assert (accepted <= drafted).all() and 0 < accepted.sum() < drafted.sum()
  ended = [t[-1] in STOPS for t in want[0]]
  assert any(ended) and not all(ended) and max(map(len, want[0])) > 15  # both ends were met


def test_a_prompt_in_chunks_has_the_drafts_of_a_whole_one():
  drafting, (settings, kinds) = Modules(2), controls(MIXED, SUPPORT)
  whole, parts = (
    fill(weights(1), config(1), kinds, settings, drafting, chunk)[1] for chunk in (8, 3)
  )
  np.testing.assert_array_equal(whole.drawn.token_B, parts.drawn.token_B)
  np.testing.assert_array_equal(whole.draft_BK, parts.draft_BK)
  assert whole.draft_BK.shape == (B, 2) and (whole.draft_BK >= 0).all()


@pytest.mark.parametrize('drafting', [Modules(2), NGram(3)], ids=str)
def test_bursts_leave_the_drafts_that_a_prefill_of_their_text_would(drafting):
  """So modules have read each token as it was taken, whatever drafts were refused before.

  Both have a page for the newest token, where the second draft's entry stands.
  """
  (settings, kinds), params, cfg = controls(MIXED, SUPPORT), weights(1), config(1)
  memory, first = fill(params, cfg, kinds, settings, drafting)
  texts, draft = [[*p, int(t)] for p, t in zip(PROMPTS, first.drawn.token_B)], first.draft_BK
  for _ in range(2):
    position, newest = np.array([(len(t) - 1, t[-1]) for t in texts], np.int32).T
    given = rows(texts, position + 6, settings, kinds, drafting)
    memory, made = program(steps.decode, cfg, kinds, drafting)(
      params, memory, newest, draft, position, np.full(B, 9, np.int32), given, np.int32(5),
      np.int32(FOREVER),
    )  # fmt: skip
    draft = made.draft_BK
    texts = [t + made.token_BN[b, : made.count_B[b]].tolist() for b, t in enumerate(texts)]
  assert (np.asarray(made.accepted_B) < made.drafted_B).any()
  again = fill(params, cfg, kinds, settings, drafting, texts=texts, ahead=1)[1]
  live = ~np.asarray(made.stopped_B)
  np.testing.assert_array_equal(np.asarray(draft)[live], again.draft_BK[live])
  assert live.sum() > 2


@pytest.mark.parametrize('drafting', [NGram(2, longest=2)], ids=str)
def test_penalties_are_those_of_the_text_so_far(drafting):
  """Greedy, by raw logits of the whole texts and counts of the host."""
  asked = [RequestSampling(0.0, 0, 1.0, 0.0, s.repetition, s.presence, s.frequency)
           for s in PENALIZED]  # fmt: skip
  cfg, params = config(1), weights(1)
  texts, logps, *_ = write(params, cfg, asked, drafting)
  filled = np.zeros((B, max(map(len, texts))), np.int32)
  for to, text in zip(filled, texts):
    to[: len(text)] = text

  @jax.jit
  def raw(params, tokens_BL):
    at = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    out = Transformer(cfg).apply({'params': params}, Inputs(tokens_BL, at, jnp.ones_like(at)))
    return out.x_BLD @ transformer.head(params, cfg)

  changed = 0
  for b, logits in enumerate(np.asarray(raw(params, filled), np.float64)):
    s, start = asked[b], len(PROMPTS[b])
    for j, token in enumerate(texts[b][start:]):
      seen, own = (np.bincount(t, minlength=V) for t in (texts[b][: start + j],
                                                         texts[b][start : start + j]))  # fmt: skip
      z = logits[start + j - 1]
      less = np.where(seen > 0, np.where(z > 0, z / s.repetition, z * s.repetition), z)
      less = less - s.presence * (own > 0) - s.frequency * own
      assert token == less.argmax()
      expected = less[token] - np.log(np.exp(less).sum())
      np.testing.assert_allclose(logps[b][j], expected, atol=1e-4)
      changed += z.argmax() != token
  assert changed


def counting(modules=1):
  """A model that goes on from v by v + 1, and modules that know it."""
  params, cfg = dict(weights(modules)), config(modules)
  none = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  params |= {k: none(v) for k, v in params.items() if k.startswith('run')}
  params['embedding'] = jnp.eye(V, 16)
  params['head'] = jnp.roll(jnp.eye(V), 1, 1)[jnp.arange(16) % V] * 9.0
  hands_on = jnp.concatenate([jnp.eye(16), jnp.zeros((16, 16))])  # the embedded token ahead
  for d in range(modules):
    made = params[f'mtp{d}']
    params[f'mtp{d}'] = made | {'block': none(made['block']), 'project': hands_on}
  return params, cfg


def burst(params, cfg, first, left, drafting=None, most=4, patience=FOREVER, draft=None):
  """One burst behind prompts that count on to `first`, all of length 4."""
  settings, kinds = controls(GREEDY, SUPPORT)
  texts = [[t - 3, t - 2, t - 1, t] for t in first]
  make = lambda c: caches.paged(c, B * PAGES, SIZE)
  modules = module_caches(cfg, make) if isinstance(drafting, Modules) else ()
  given = rows(texts, [4 + most] * B, settings, kinds, drafting)
  return jax.device_get(
    program(steps.decode, cfg, kinds, drafting)(
      params, steps.Memory(make(cfg), modules), np.array(first, np.int32), draft,
      np.full(B, 3, np.int32), np.array(left, np.int32), given, np.int32(most), np.int32(patience),
    )[1]
  )  # fmt: skip


def test_drafts_that_hold_are_taken_all_at_once():
  """Two drafts a row, both right: three tokens a round. −1 is not accepted, nor counted."""
  params, cfg = counting()
  first = [3, 4, 5, 6, 8]
  draft = np.add.outer(first, [1, 2]).astype(np.int32) % V
  draft[1] = -1
  made = burst(params, cfg, first, [9, 9, 3, 9, 9], Modules(2), most=5, draft=draft)
  # The second round stops at five tokens, with room for two; 8 + 1 is 0, a stop.
  assert made.count_B.tolist() == [5, 4, 3, 3, 1]
  assert made.stopped_B.tolist() == [False, False, False, True, True]
  assert made.token_BN[0].tolist() == [4, 5, 6, 7, 8]
  assert made.token_BN[3, :3].tolist() == [7, 8, 0]
  assert made.token_BN[4].tolist() == [0] * 5  # the second draft holds too, behind a stop
  assert made.drafted_B.tolist() == [4, 2, 2, 2, 2]
  assert made.accepted_B.tolist() == [4, 2, 2, 2, 1]
  assert made.draft_BK.tolist() == [[0, 1], [0, 1], [-1, -1], [-1, -1], [-1, -1]]


def test_drafts_out_of_the_text_hold_where_it_repeats():
  """A model that goes on by v − v mod 3 + (v + 1) mod 3: the prompts go round once before it."""
  params, cfg = counting()
  goes = np.array([1, 2, 0, 4, 5, 3, 7, 8, 6])
  params['head'] = jnp.eye(V)[goes][jnp.arange(16) % V] * 9.0
  texts = np.array([[3, 4, 5, 3], [6, 7, 8, 6]] * 3)[:B]
  settings, kinds = controls(GREEDY, SUPPORT)
  given = rows(texts, [9] * B, settings, kinds, NGram(3))
  memory = steps.Memory(caches.paged(cfg, B * PAGES, SIZE))
  made = program(steps.decode, cfg, kinds, NGram(3))(
    params, memory, texts[:, 3].astype(np.int32), np.full((B, 3), -1, np.int32),
    np.full(B, 3, np.int32), np.full(B, 9, np.int32), given, np.int32(5), np.int32(FOREVER),
  )[1]  # fmt: skip
  assert made.token_BN[0].tolist() == [4, 5, 3, 4, 5] and (made.count_B == 5).all()
  # One token, then three drafts and one behind them.
  assert made.drafted_B.tolist() == [3] * B and made.accepted_B.tolist() == [3] * B


def test_only_rows_that_live_write_and_not_beyond_what_is_left():
  params, cfg = weights(1), config(1)
  first = [3, 4, 5, 6, 7]
  whole = burst(params, cfg, first, [4] * B)
  part = burst(params, cfg, first, [3, 0, 9, -2, 1])
  n = np.minimum(whole.count_B, [3, 0, 4, 0, 1])
  assert part.count_B.tolist() == n.tolist()
  for b in range(B):  # whoever lives beside a row does not enter
    np.testing.assert_array_equal(part.token_BN[b, : n[b]], whole.token_BN[b, : n[b]])
    assert not part.token_BN[b, n[b] :].any()
  assert whole.draft_BK is None and not whole.drafted_B.any() and not whole.accepted_B.any()


@pytest.mark.parametrize(
  ('left', 'patience', 'counts'),
  [
    ([9, 9, 9, 9, 0], 0, [4, 4, 4, 4, 0]),  # nobody ends
    ([9, 9, 9, 1, 0], 0, [1, 1, 1, 1, 0]),  # a row that never lived is not waited for
    ([9, 9, 9, 1, 9], 1, [2, 2, 2, 1, 2]),
    ([9, 9, 9, 1, 9], 2, [3, 3, 3, 1, 3]),
    ([9, 9, 9, 1, 1], 2, [2, 2, 2, 1, 1]),  # two rows wait a round each
    ([9, 2, 9, 1, 9], 3, [3, 2, 3, 1, 3]),  # one waits two rounds, one another
    ([9, 9, 9, 1, 1], FOREVER, [4, 4, 4, 1, 1]),
    ([2, 1, 1, 1, 1], FOREVER, [2, 1, 1, 1, 1]),
    ([0, 0, 0, 0, 0], 0, [0, 0, 0, 0, 0]),
  ],
)
def test_a_burst_ends_when_ended_rows_have_waited_for_patience(left, patience, counts):
  made = burst(*counting(), [1, 2, 3, 4, 1], left, patience=patience)
  assert made.count_B.tolist() == counts and not made.stopped_B.any()


def test_patience_counts_rounds_whatever_they_write():
  right = lambda first: np.add.outer(first, [1, 2]).astype(np.int32)
  first, left = [1, 1, 1, 1, 1], [9, 1, 9, 9, 9]
  for patience, count in ((0, 3), (1, 5)):
    made = burst(
      *counting(), first, left, Modules(2), most=5, patience=patience, draft=right(first)
    )
    assert made.count_B.tolist() == [count, 1, count, count, count]


def test_a_stop_token_is_written_and_nothing_behind_it():
  made = burst(*counting(), [6, 7, 8, 3, 5], [4] * B)
  assert made.count_B.tolist() == [3, 2, 1, 4, 4]
  assert made.stopped_B.tolist() == [True, True, True, False, True]
  assert made.token_BN[:, :4].tolist() == [
    [7, 8, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0], [4, 5, 6, 7], [6, 7, 8, 0]
  ]  # fmt: skip


def test_what_is_missing_is_named():
  params, cfg = weights(1), config(1)
  with pytest.raises(ValueError, match=r'give Rows\.history'):
    settings, kinds = controls(PENALIZED, SUPPORT)
    memory = steps.Memory(caches.paged(cfg, 1, SIZE))
    given = steps.Rows(np.zeros((B, 1), np.int32), SEEDS, settings)
    zeros = np.zeros(B, np.int32)
    steps.prefill(params, memory, zeros[:, None], zeros, zeros, zeros, given, cfg=cfg, kinds=kinds)
  with pytest.raises(ValueError, match=r'draft_BK is \(5, 0\).*\(5, 2\)'):
    burst(params, cfg, [3] * B, [1] * B, Modules(2))
  assert [drafts.count(d) for d in (None, Modules(2), NGram(3))] == [0, 2, 3]
