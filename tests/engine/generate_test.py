"""Generation against full forward passes, and its independence of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine.engine import Engine
from r1jax.kernels.logprob.truncate import FILLER, Sampling
from r1jax.model import transformer
from r1jax.model.config import MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.sharding.mesh import Mesh

ATTENTION = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16, std=0.2)
EXPERTS = MoE(ffw=32, experts=4, active=2, groups=2, active_groups=1, std=0.2)
CFG = ModelConfig(
  vocab=32,
  embed=32,
  layers=(Layer(ATTENTION, Dense(64, std=0.2)), Layer(ATTENTION, EXPERTS)),
  mtp=(Layer(ATTENTION, EXPERTS),),
  std=0.3,
  remat='none',
)
B, P, LIMIT = 4, 6, 8
STOPS = (3, 5, 8, 13, 21)
LENGTHS = np.array([6, 2, 4, 1], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, 32, (B, P)).astype(np.int32)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope='module')
def params():
  return place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))


@pytest.fixture(scope='module')
def engine():
  return Engine(CFG, STOPS)


@pytest.fixture(scope='module')
def endless():
  """Never stops: no token has this id."""
  return Engine(CFG, (CFG.vocab,))


def keys(numbers):
  return prng.fold_rows(jax.random.key(5), np.asarray(numbers))


def rows(samples, b):
  """What one row holds: tokens and log-probabilities up to its length."""
  n = int(samples.length_B[b])
  return samples.tokens_BT[b, :n].tolist(), np.asarray(samples.logp_BT[b, :n])


def test_greedy_is_the_argmax_of_full_forward_passes(params, endless):
  made = endless(params, PROMPTS, LENGTHS, keys(range(B)), GREEDY, LIMIT)
  tokens = np.zeros((B, P + LIMIT), np.int32)
  for b, n in enumerate(LENGTHS):
    tokens[b, : n + LIMIT] = [*PROMPTS[b, :n], *made.tokens_BT[b]]
  at = jnp.broadcast_to(jnp.arange(P + LIMIT), tokens.shape)
  inside = (at < (LENGTHS + LIMIT)[:, None]).astype(jnp.int32)
  out = Transformer(CFG).apply({'params': params}, Inputs(jnp.asarray(tokens), at, inside))
  logp = jax.nn.log_softmax(out.x_BLD @ transformer.head(params, CFG))
  for b, n in enumerate(LENGTHS):
    here = np.asarray(logp[b, n - 1 : n - 1 + LIMIT])
    assert made.tokens_BT[b].tolist() == here.argmax(-1).tolist()
    np.testing.assert_allclose(made.logp_BT[b], here.max(-1), atol=1e-5)
    routes = np.asarray(made.routes[1][0].experts)[:, b, : n + LIMIT - 1]
    np.testing.assert_array_equal(
      routes, np.asarray(out.routes[1][0].experts)[:, b, : n + LIMIT - 1]
    )
  assert made.length_B.tolist() == [LIMIT] * B and not made.stopped_B.any()


def test_a_row_does_not_depend_on_the_batch_its_order_or_its_padding(params, engine):
  among = engine(params, PROMPTS, LENGTHS, keys(range(B)), Sampling(), LIMIT)
  assert len({tuple(rows(among, b)[0]) for b in range(B)}) == B
  order = np.array([2, 0, 3, 1])
  other = np.where(np.arange(P) < LENGTHS[:, None], PROMPTS, 31 - PROMPTS)
  shuffled = engine(params, other[order], LENGTHS[order], keys(order), Sampling(), LIMIT)
  alone = engine(params, PROMPTS[1:2], LENGTHS[1:2], keys([1]), Sampling(), LIMIT)
  for b in range(B):
    tokens, logp = rows(among, b)
    same, close = rows(shuffled, order.tolist().index(b))
    assert same == tokens
    np.testing.assert_allclose(close, logp, atol=1e-5)
  assert rows(alone, 0)[0] == rows(among, 1)[0]
  np.testing.assert_allclose(rows(alone, 0)[1], rows(among, 1)[1], atol=1e-5)
  again = engine(params, PROMPTS, LENGTHS, keys(range(B, 2 * B)), Sampling(), LIMIT)
  assert again.tokens_BT.tolist() != among.tokens_BT.tolist()


def test_contract_09_any_stop_ends_a_row_and_the_limit_is_no_stop(params, engine):
  found = [
    jax.device_get(
      engine(params, PROMPTS, LENGTHS, keys(range(B * i, B * i + B)), Sampling(), LIMIT)
    )
    for i in range(6)
  ]
  ended_by = set()
  for made in found:
    for tokens, n, stopped, logp in zip(
      made.tokens_BT, made.length_B, made.stopped_B, made.logp_BT
    ):
      hits = np.isin(tokens[:n], STOPS)
      assert not hits[:-1].any() and hits[-1] == stopped and (stopped or n == LIMIT)
      assert not tokens[n:].any() and not logp[n:].any() and (logp[:n] < 0).all()
      ended_by |= {int(tokens[n - 1])} if stopped else {None}
  assert len(ended_by) > 3 and None in ended_by  # several ids, and the limit too


def test_contract_03_samples_carry_the_sets_that_their_tokens_were_drawn_from(params, engine):
  """The tokens are those of a run that keeps no sets; behind a row's end there is only filler."""
  sampling = Sampling(0.8, top_k=9, top_p=0.8)
  made = jax.device_get(engine(params, PROMPTS, LENGTHS, keys(range(B)), sampling, LIMIT, True))
  plain = jax.device_get(engine(params, PROMPTS, LENGTHS, keys(range(B)), sampling, LIMIT))
  assert plain.support_BTK is None and made.support_BTK.shape == (B, LIMIT, 9)
  np.testing.assert_array_equal(made.tokens_BT, plain.tokens_BT)
  np.testing.assert_allclose(made.logp_BT, plain.logp_BT, atol=1e-5)
  sizes = (made.support_BTK != FILLER).sum(-1)
  for b, n in enumerate(made.length_B):
    assert (made.support_BTK[b, :n] == made.tokens_BT[b, :n, None]).any(-1).all()
    assert (sizes[b, :n] >= 1).all() and not sizes[b, n:].any()
  assert len(set(sizes[sizes > 0].tolist())) > 2 and (made.length_B < LIMIT).any()


def test_generation_ends_when_all_rows_have(params):
  """Routes are written a step at a time: behind the longest row's steps there are none."""
  engine = Engine(CFG, tuple(range(0, 32, 2)))
  made = jax.device_get(engine(params, PROMPTS, LENGTHS, keys(range(B)), Sampling(), 3 * LIMIT))
  longest = made.length_B.max()
  assert made.stopped_B.all() and 1 < longest < 3 * LIMIT
  routes = made.routes[1][0].experts[0]
  for b, n in enumerate(LENGTHS):
    assert not routes[b, max(n + longest - 1, P) :].any()
    assert routes[b, n + longest - 2].any()


def test_a_mesh_gives_the_tokens_of_one_device(params, engine):
  expected = engine(params, PROMPTS, LENGTHS, keys(range(B)), Sampling(), LIMIT)
  mesh = meshes.make(Mesh(fsdp=2, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
    sharded = jax.device_put(params, place.shardings(mesh, boxed))
    sharded_engine = Engine(CFG, STOPS, mesh)
    made = sharded_engine(sharded, PROMPTS, LENGTHS, keys(range(B)), Sampling(), LIMIT)
  np.testing.assert_array_equal(made.tokens_BT, expected.tokens_BT)
  np.testing.assert_array_equal(made.length_B, expected.length_B)
  np.testing.assert_array_equal(made.stopped_B, expected.stopped_B)
  np.testing.assert_allclose(made.logp_BT, expected.logp_BT, atol=1e-5)
