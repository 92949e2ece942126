"""Whole generation in rounds against plain generation and exact joints of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from r1jax.core import prng
from r1jax.engine.generate import Samples, generate
from r1jax.engine.rounds import emit, generate_speculative
from r1jax.engine.speculative import Verdict
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import place

V = 6
CFG = ModelConfig(
  vocab=V,
  embed=16,
  layers=(
    Layer(MLA(heads=2, nope=4, rope=4, value=4, kv_latent=8, std=0.3), MoE(8, 4, 2, std=0.3)),
  ),
  mtp=(Layer(GQA(2, 1, 4, std=0.3), Dense(16, std=0.3)),),
  std=0.5,
  remat='none',
)
B, P, LIMIT = 6, 5, 11
LENGTHS = np.array([5, 2, 4, 1, 3, 3], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, V, (B, P)).astype(np.int32)


@pytest.fixture(scope='module')
def params():
  """A module that hands h on, all but its block's say: it drafts the token that came before."""
  made = place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))
  project = jnp.concatenate([jnp.zeros((16, 16)), jnp.eye(16)])
  return made | {'mtp0': made['mtp0'] | {'project': project}}


def keys(n):
  return prng.fold_rows(jax.random.key(5), np.arange(n))


def run(f, params, stops, prompts=None, **more):
  more = {'limit': LIMIT, 'sampling': Sampling()} | more
  program = jax.jit(functools.partial(f, cfg=CFG, stops=stops, **more))
  return jax.device_get(program(params, *(prompts or (PROMPTS, LENGTHS, keys(B)))))


@pytest.mark.parametrize(
  'sampling, stops, drafts',
  [(Sampling(0.0), (V,), 1), (Sampling(0.0), (V,), 2), (Sampling(1.2, top_k=4), (2,), 3)],
)
def test_contract_04_coupled_rounds_give_what_plain_generation_does(
  params, sampling, stops, drafts
):
  """Tokens, lengths, log-probabilities and experts; greedy rows all reach the limit."""
  plain = run(generate, params, stops, sampling=sampling)
  made = run(generate_speculative, params, stops, sampling=sampling, drafts=drafts)
  samples = made.samples
  np.testing.assert_array_equal(samples.length_B, plain.length_B)
  np.testing.assert_array_equal(samples.stopped_B, plain.stopped_B)
  np.testing.assert_array_equal(samples.tokens_BT, plain.tokens_BT)
  np.testing.assert_allclose(samples.logp_BT, plain.logp_BT, atol=1e-4)
  for b in range(B):
    known = LENGTHS[b] + plain.length_B[b] - 1
    routes = (x.routes[0][0].experts[:, b] for x in (samples, plain))
    np.testing.assert_array_equal(*(r[:, :known] for r in routes))
    assert not samples.routes[0][0].experts[:, b, known:].any()
  if stops == (V,):
    assert (plain.length_B == LIMIT).all() and not plain.stopped_B.any()
  else:
    assert plain.stopped_B.any() and len(set(plain.length_B.tolist())) > 2
  assert 0 < made.accepted_B.sum() < made.drafted_B.sum()
  # Each round after the first token writes what it kept and one more, but for its end.
  rounds_B = made.drafted_B // drafts
  assert (samples.length_B <= 1 + rounds_B + made.accepted_B).all()
  assert (samples.length_B >= rounds_B + made.accepted_B).all()


def test_rounds_of_drawn_drafts_have_the_joint_of_the_model(params):
  """χ² at 0.1 % over all 216 triples."""
  N, prompt = 6000, jnp.asarray([[3, 1]], jnp.int32)
  texts = np.array([[3, 1, a, b] for a in range(V) for b in range(V)], np.int32)
  at = jnp.broadcast_to(jnp.arange(4), texts.shape)
  out = jax.jit(Transformer(CFG).apply)({'params': params}, Inputs(texts, at, jnp.ones_like(at)))
  z = np.asarray(out.x_BLD @ transformer.head(params, CFG), np.float64).reshape(V, V, 4, V)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  joint = p[0, 0, 1][:, None, None] * p[:, 0, 2][:, :, None] * p[:, :, 3]
  prompts = jnp.repeat(prompt, N, 0), jnp.full(N, 2, jnp.int32), keys(N)
  made = run(generate_speculative, params, (V,), prompts, limit=3, drafts=2, choice='drawn')
  tokens = tuple(made.samples.tokens_BT.T)
  seen = np.zeros((V,) * 3)
  np.add.at(seen, tokens, 1)
  expected = N * joint
  rare = expected < 5  # too few for χ²: counted as one
  fold = lambda x: np.append(x[~rare], x[rare].sum())
  chi2 = ((fold(seen) - fold(expected)) ** 2 / fold(expected)).sum()
  assert chi2 < scipy.stats.chi2.ppf(0.999, (~rare).sum())
  a, b, c = tokens
  expected = np.log(np.stack([p[a, 0, 1, a], p[a, 0, 2, b], p[a, b, 3, c]], 1))
  np.testing.assert_allclose(made.samples.logp_BT, expected, atol=1e-4)
  assert 0.2 < made.accepted_B.sum() / made.drafted_B.sum() < 0.8


def test_a_round_writes_up_to_a_stop_token_or_the_limit():
  T = 4
  blank = jnp.zeros((5, T))
  stopped = jnp.array([False, False, True, False, False])
  length = jnp.array([0, 1, 1, 3, 4])
  before = Samples(blank.astype(jnp.int32), blank, length, stopped, ())
  tokens = jnp.array([[7, 8, 9], [7, 1, 1], [7, 8, 9], [7, 8, 9], [7, 8, 9]])
  verdict = Verdict(jnp.array([1, 2, 2, 2, 0]), tokens, -tokens.astype(jnp.float32))
  after, n_B = emit(before, verdict, stops=(1, 9))
  assert n_B.tolist() == [2, 2, 0, 1, 0]
  assert after.length_B.tolist() == [2, 3, 1, 4, 4]
  assert after.stopped_B.tolist() == [False, True, True, False, False]
  assert after.tokens_BT.tolist() == [
    [7, 8, 0, 0], [0, 7, 1, 0], [0, 0, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0],
  ]  # fmt: skip
  np.testing.assert_array_equal(after.logp_BT, -after.tokens_BT.astype(jnp.float32))


def test_rounds_without_drafts_are_refused(params):
  with pytest.raises(ValueError, match='drafts=0'):
    run(generate_speculative, params, (V,), drafts=0)
