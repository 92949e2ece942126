"""Acceptance against exact joints over a small vocabulary; drafts against whole forward passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from r1jax.core import prng
from r1jax.engine.sampling import draw, sample
from r1jax.engine.speculative import (
  DRAFT,
  accept,
  agree,
  coupled,
  draft,
  drawn,
  drawn_anew,
  hidden,
  module_caches,
  row_keys,
)
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import cache as caches
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.mtp import PredictionModule
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.model.types import Place
from r1jax.sharding import place as places

V, N = 4, 5000
KEYS = prng.fold_rows(jax.random.key(3), np.arange(N))
ACCEPTED = jax.jit(accept)
GREEDY = Sampling(0.0)
START = 2  # the token before the first


def tables(kind):
  """Logits of the next token by the last one: the target's and the drafts'."""
  rng = np.random.default_rng(7)
  p, q = rng.normal(size=(2, V, V)) * 1.5
  if kind == 'truncated':  # a token that only the drafts have, and one that they lack
    p[np.arange(V), np.arange(V)] = -np.inf
    q[np.arange(V), (np.arange(V) + 1) % V] = -np.inf
  if kind == 'point masses':
    q = np.where(np.arange(V) == rng.integers(0, V, (V, 1)), 0, -np.inf)
  return jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def one_round(p_VV, q_VV, K, last_B, position_B):
  """K tokens drafted by the chain q behind the last ones, and the verdict of the chain p."""
  before, drafts = last_B, []
  for j in range(K):
    keys = row_keys(KEYS, (position_B + j)[:, None], DRAFT)[:, 0]
    drafts.append(draw(q_VV[before], keys))
    before = drafts[-1]
  draft_BK = jnp.stack(drafts, 1)
  seen_BL = jnp.concatenate([last_B[:, None], draft_BK], 1)
  return accept(draft_BK, q_VV[seen_BL[:, :-1]], p_VV[seen_BL], KEYS, position_B)


@pytest.mark.parametrize('kind', ['anything', 'truncated', 'point masses'])
@pytest.mark.parametrize('K', [1, 2, 3])
def test_three_tokens_in_rounds_have_the_joint_of_the_target(K, kind):
  """χ² over all triples at 0.1 %; how many drafts stay is Σ min(p, q)."""
  p_VV, q_VV = tables(kind)
  text, length, first = np.full((N, 3 + K + 2), START), np.zeros(N, int), None
  while (length < 3).any():
    last = text[np.arange(N), length]  # text[:, 0] is the token before the first
    verdict = jax.device_get(one_round(p_VV, q_VV, K, last, length))
    first = verdict if first is None else first
    for j in range(K + 1):
      live = (length < 3) & (j <= verdict.accepted_B)
      text[live, length[live] + 1 + j] = verdict.tokens_BL[live, j]
    length = np.where(length < 3, length + 1 + verdict.accepted_B, length)
  p, q = (np.asarray(jax.nn.softmax(x, -1), np.float64) for x in (p_VV, q_VV))
  joint = p[START][:, None, None] * p[:, :, None] * p[None]
  seen = np.zeros((V,) * 3)
  np.add.at(seen, tuple(text[:, 1:4].T), 1)
  possible = joint > 0
  assert not seen[~possible].any()
  rare = N * joint < 5  # too few for χ²: counted as one
  fold = lambda x: np.append(x[~rare], x[rare].sum())
  seen, expected = fold(seen), fold(N * joint)
  chi2 = ((seen - expected) ** 2 / np.maximum(expected, 1)).sum()
  assert chi2 < scipy.stats.chi2.ppf(0.999, len(seen) - 1)
  rate, expected = (first.accepted_B > 0).mean(), np.minimum(p, q)[START].sum()
  assert abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / N)
  np.testing.assert_array_equal(first.accepted_B.max(), K)


@functools.cache
def random_round(rows=200, K=3, size=300):
  """Drafts, their logits, the target's, keys and positions."""
  rng = np.random.default_rng(1)
  z, q = rng.normal(size=(rows, K + 1, size)) * 2, rng.normal(size=(rows, K, size)) * 2
  position = rng.integers(0, 50, rows)
  draft_BK = draw(
    jnp.asarray(q.reshape(rows * K, size), jnp.float32),
    row_keys(KEYS[:rows], position[:, None] + np.arange(K), DRAFT).reshape(-1),
  ).reshape(rows, K)
  return draft_BK, jnp.asarray(q, jnp.float32), jnp.asarray(z, jnp.float32), KEYS[:rows], position


def test_contract_04_log_probabilities_are_the_targets():
  given = random_round()
  verdict, z = ACCEPTED(*given), np.asarray(given[2], np.float64)
  logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
  expected = np.take_along_axis(logp, np.asarray(verdict.tokens_BL)[..., None], 2)[..., 0]
  np.testing.assert_allclose(verdict.logp_BL, expected, atol=1e-4)


def test_a_verdict_depends_on_its_row_alone():
  given = random_round()
  among, order = ACCEPTED(*given), np.random.default_rng(2).permutation(200)
  apart = ACCEPTED(*(x[order] for x in given))
  for x, y in zip(among, apart):
    np.testing.assert_allclose(x[order], y, atol=1e-6)


def test_drafts_from_the_target_itself_all_stay_and_missing_ones_leave_plain_sampling():
  draft_BK, q, z, key_B, position_B = random_round()
  assert (ACCEPTED(draft_BK, q, z.at[:, :-1].set(q), key_B, position_B).accepted_B == 3).all()
  none = ACCEPTED(jnp.full_like(draft_BK, -1), q, z, key_B, position_B)
  assert not none.accepted_B.any()
  plain, _ = sample(z[:, 0], row_keys(key_B, position_B[:, None])[:, 0], Sampling())
  np.testing.assert_array_equal(none.tokens_BL[:, 0], plain)


@pytest.mark.parametrize('sampling', [GREEDY, Sampling(0.8, 5, 0.9)])
def test_drawing_anew_gives_the_tokens_of_plain_sampling_whatever_the_drafts(sampling):
  """Half of the drafts are what plain sampling draws, a tenth is none at all."""
  _, _, z, key_B, position_B = random_round()
  plain = [
    sample(z[:, j], row_keys(key_B, position_B[:, None] + j)[:, 0], sampling) for j in range(4)
  ]
  tokens, logp = (np.stack(x, 1) for x in zip(*plain))
  rng = np.random.default_rng(4)
  drafts = np.where(rng.random((200, 3)) < 0.5, tokens[:, :3], 7)
  drafts[rng.random((200, 3)) < 0.1] = -1
  verdict = drawn_anew(jnp.asarray(drafts), z, key_B, position_B, sampling)
  np.testing.assert_array_equal(verdict.tokens_BL, tokens)
  np.testing.assert_allclose(verdict.logp_BL, logp, atol=1e-6)
  same = (drafts == tokens[:, :3]).tolist()
  assert verdict.accepted_B.tolist() == [[*row, False].index(False) for row in same]
  assert set(verdict.accepted_B.tolist()) == {0, 1, 2, 3}


def test_agreement_ends_at_the_first_difference():
  drafts = jnp.array([[1, 2, 3], [9, 2, 3], [1, 9, 3], [1, 2, -1]])
  assert agree(drafts, jnp.array([[1, 2, 3, 4]] * 4)).tolist() == [3, 0, 1, 2]


def test_choices_are_plain_samplings_numbers_or_a_stream_of_their_own():
  _, _, z, key_B, position_B = random_round()
  sampling, keys = Sampling(0.7, 9), row_keys(key_B, position_B[:, None])[:, 0]
  same, none = coupled(key_B, sampling)(z[:, 0], position_B)
  np.testing.assert_array_equal(same, sample(z[:, 0], keys, sampling)[0])
  other, q = drawn(key_B, sampling)(z[:, 0], position_B)
  assert none is None and (np.asarray(q) > -np.inf).sum(-1).tolist() == [9] * 200
  assert (np.take_along_axis(np.asarray(q), np.asarray(other)[:, None], 1) > -np.inf).all()
  assert 0.1 < (same == other).mean() < 0.9


# Drafts of the prediction modules.

LATENT = MLA(heads=2, nope=4, rope=4, value=4, kv_latent=8, std=0.3)
EXPERTS = MoE(ffw=8, experts=4, active=2, std=0.3)
MODULES = (Layer(LATENT, EXPERTS), Layer(GQA(2, 1, 4, std=0.3), Dense(16, std=0.3)))
CFG = ModelConfig(
  vocab=16,
  embed=16,
  layers=(Layer(GQA(2, 1, 4, std=0.3), Dense(16, std=0.3)),),
  mtp=MODULES[:1],
  std=0.5,
  remat='none',
)
B, T = 3, 10
TEXT = jnp.asarray(np.random.default_rng(0).integers(0, 16, (B, T + 3)), jnp.int32)
AT = jnp.broadcast_to(jnp.arange(T), (B, T))


@functools.cache
def whole(cfg):
  """Parameters, and the output for all positions at once."""
  params = places.init(Transformer(cfg), jax.random.key(0), None, dummy_inputs(cfg))
  ahead = tuple(TEXT[:, d : d + T] for d in range(1, len(cfg.mtp) + 1))
  inputs = Inputs(TEXT[:, :T], AT, jnp.ones_like(AT), ahead)
  return params, jax.jit(Transformer(cfg).apply)({'params': params}, inputs)


def windows(seed):
  """Rows of a padded window at a time: (from_B, to_B) of positions, in uneven strides."""
  rng, at = np.random.default_rng(seed), np.zeros(B, int)
  while (at < T).any():
    to = np.minimum(at + rng.integers(0, 5, B), T)
    yield at, to
    at = to


@pytest.mark.parametrize('modules', [1, 2])
@pytest.mark.parametrize('mtp_input', ['normed', 'stream'])
def test_drafts_in_ragged_windows_are_those_of_training(mtp_input, modules):
  """The text itself is chosen, so that both see the same tokens ahead."""
  cfg = dataclasses.replace(CFG, mtp=MODULES[:modules], mtp_input=mtp_input)
  params, out = whole(cfg)
  h_BTD, cache = hidden(out, cfg), module_caches(cfg, lambda c: caches.empty(c, B, T + 4))
  take = lambda logits_BV, position_B: (TEXT[jnp.arange(B), position_B], logits_BV)

  @jax.jit
  def window(at_B, to_B, cache):
    at_BL = at_B[:, None] + jnp.arange(4)
    live_BL = at_BL < to_B[:, None]
    part = lambda x: jax.vmap(lambda row, at: row[at])(x, jnp.minimum(at_BL, T - 1))
    ahead_BL = jnp.where(live_BL, part(TEXT[:, 1:]), 5)
    place = Place(at_BL, live_BL.astype(jnp.int32))
    return draft(params, cfg, part(h_BTD), ahead_BL, place, cache, modules, take)

  for at, to in windows(modules):
    made = window(at, to, cache)
    cache = made.cache
    for b in np.flatnonzero(to > at):
      last = to[b] - 1
      assert made.tokens_BK[b].tolist() == TEXT[b, last + 2 : last + 2 + modules].tolist()
      for d in range(modules):
        expected = transformer.logits(params, cfg, out.mtp[d][b, last][None])[0]
        np.testing.assert_allclose(made.z_BKV[b, d], expected, atol=1e-5)


def test_the_last_module_goes_on_with_its_own_output_a_position_on():
  """Three drafts of one module, against it run over a text that ends in its own drafts."""
  params, out = whole(CFG)
  made = jax.jit(
    lambda params, h_BTD: draft(
      params, CFG, h_BTD, TEXT[:, 1 : T + 1], Place(AT, jnp.ones_like(AT)),
      module_caches(CFG, lambda c: caches.empty(c, B, T + 2)), 3, coupled(KEYS[:B], GREEDY),
    )
  )(params, out.x_BLD)  # fmt: skip
  assert made.z_BKV is None

  @jax.jit
  def module(h_BTD, ahead_BT):
    at = jnp.broadcast_to(jnp.arange(T + 2), ahead_BT.shape)
    given, embedded = {'params': params['mtp0']}, params['embedding'][ahead_BT]
    y = PredictionModule(CFG.mtp[0]).apply(given, h_BTD, embedded, Place(at, jnp.ones_like(at)))[1]
    return y, (y @ transformer.head(params, CFG)).argmax(-1)

  h = np.pad(out.x_BLD, ((0, 0), (0, 2), (0, 0)))
  ahead = np.pad(TEXT[:, 1 : T + 1], ((0, 0), (0, 2)))
  for j in range(3):
    y, token = module(h, ahead)
    assert made.tokens_BK[:, j].tolist() == token[:, T - 1 + j].tolist()
    if j < 2:
      h[:, T + j], ahead[:, T + j] = y[:, T - 1 + j], token[:, T - 1 + j]


def test_a_model_without_modules_drafts_nothing():
  with pytest.raises(ValueError, match='drafts need prediction modules'):
    cfg = dataclasses.replace(CFG, mtp=())
    place = Place(AT, jnp.ones_like(AT))
    draft({}, cfg, jnp.zeros((B, T, 16)), AT, place, (), 1, coupled(KEYS[:B], Sampling()))
