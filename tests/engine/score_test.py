"""Scores against a softmax of whole logits in float64, whatever the batching; compilations."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.engine.score import Scorer
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.sharding.mesh import Mesh

LATENT = MLA(heads=2, nope=8, rope=8, value=8, kv_latent=16, std=0.2)
EXPERTS = MoE(ffw=32, experts=4, active=2, groups=2, active_groups=1, std=0.2)
CFG = ModelConfig(
  vocab=32,
  embed=32,
  layers=(Layer(LATENT, EXPERTS), Layer(GQA(4, 2, 8, std=0.2), Dense(64, std=0.2))),
  std=0.3,
  remat='none',
)
TEXT = np.random.default_rng(0).integers(0, CFG.vocab, (8, 60))
ROWS = [TEXT[i % 8, :n].tolist() for i, n in enumerate((2, 60, 17, 18, 1, 9, 33, 40, 25, 26, 3))]


@pytest.fixture(scope='module')
def params():
  return place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))


@pytest.fixture(scope='module')
def expected(params):
  """(logp, greedy) of each row of ROWS."""
  at = jnp.broadcast_to(jnp.arange(60), TEXT.shape)
  inputs = Inputs(jnp.asarray(TEXT), at, jnp.ones_like(at))
  x = np.asarray(jax.jit(Transformer(CFG).apply)({'params': params}, inputs).x_BLD, np.float64)
  z = x @ np.asarray(transformer.head(params, CFG), np.float64)
  logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
  greedy = z.argmax(-1)
  return [
    ([logp[i % 8, t, y] for t, y in enumerate(row[1:])], greedy[i % 8, : len(row) - 1] == row[1:])
    for i, row in enumerate(ROWS)
  ]


def assert_scored(made, expected):
  assert len(made) == len(expected)
  for got, (logp, greedy) in zip(made, expected):
    assert got.logp.dtype == np.float32 and got.greedy.dtype == bool
    np.testing.assert_allclose(got.logp, logp, atol=1e-5)
    np.testing.assert_array_equal(got.greedy, greedy)


@pytest.mark.parametrize('slots', [64, 8192])
def test_scores_are_those_of_whole_logits_in_the_order_given(params, expected, slots):
  score = Scorer(CFG, slots=slots)
  assert_scored(score(params, ROWS), expected)
  order = np.random.default_rng(slots).permutation(len(ROWS))
  assert_scored(score(params, [ROWS[i] for i in order]), [expected[i] for i in order])
  assert any(greedy.any() for _, greedy in expected)  # not all of them are misses


def test_a_bucket_compiles_once_and_a_length_never(params):
  heard = []

  def announce(what):
    heard.append(what)
    return contextlib.nullcontext()

  score = Scorer(CFG, announce=announce, slots=64)
  score(params, [TEXT[0, :n] for n in range(2, 61)])
  sizes = ['1 × 64', '1 × 48', '2 × 32', '2 × 24', '4 × 16']
  assert heard == [f'scoring of {size} tokens' for size in sizes]
  score(params, [TEXT[1, :n] for n in range(60, 1, -1)])
  score(params, [TEXT[2, :55], TEXT[3, :34]])
  assert len(heard) == 5


def test_no_rows_and_empty_rows(params):
  score = Scorer(CFG)
  assert score(params, []) == []
  assert [s.logp.shape for s in score(params, [[3], [4]])] == [(0,), (0,)]
  with pytest.raises(ValueError, match='a row to score has no tokens'):
    score(params, [[1, 2], []])


def test_a_mesh_scores_as_one_device(params, expected):
  mesh = meshes.make(Mesh(fsdp=2, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    boxed = place.abstract(Transformer(CFG), dummy_inputs(CFG))
    sharded = jax.device_put(params, place.shardings(mesh, boxed))
    assert_scored(Scorer(CFG, mesh)(sharded, ROWS[2:7]), expected[2:7])
