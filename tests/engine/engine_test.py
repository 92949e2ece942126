"""One program for each (sampling, limit, shape), announced once."""

import contextlib

import jax
import numpy as np

from r1jax.core import prng
from r1jax.engine.engine import Engine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

LAYER = Layer(GQA(heads=2, kv_heads=1, head=8), Dense(16))
CFG = ModelConfig(vocab=16, embed=16, layers=(LAYER,), remat='none')


def test_programs_are_compiled_once_and_parameters_are_used_as_they_lie():
  heard = []

  def announce(what):
    heard.append(what)
    return contextlib.nullcontext()

  params = place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))
  engine = Engine(CFG, (3,), announce=announce)
  lengths, keys = np.array([3, 1]), prng.fold_rows(jax.random.key(0), np.arange(2))
  prompts = np.array([[1, 2, 4], [5, 0, 0]], np.int32)
  first = engine(params, prompts, lengths, keys, Sampling(), 4)
  again = engine(params, prompts, lengths, keys, Sampling(), 4)
  np.testing.assert_array_equal(first.tokens_BT, again.tokens_BT)
  engine(params, prompts, lengths, keys, Sampling(), 5)
  assert heard == ['rollout of 2 × 4 tokens', 'rollout of 2 × 5 tokens']
  other = jax.tree.map(lambda x: x + 1, params)  # new weights, no new program
  assert not np.array_equal(
    engine(other, prompts, lengths, keys, Sampling(), 4).logp_BT, first.logp_BT
  )
  assert len(heard) == 2
