"""One program for each (sampling, limit, shape), announced once; generation itself is a stub."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.core import prng
from r1jax.engine import engine as engines
from r1jax.engine.engine import Engine
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh

KEYS = prng.fold_rows(jax.random.key(0), np.arange(8))
PROMPTS, LENGTHS = np.arange(24).reshape(8, 3), np.arange(8)


def stub(params, prompts_BP, lengths_B, key_B, *, cfg, sampling, stops, limit, keep_support):
  assert not keep_support
  assert (cfg, stops, key_B.shape) == ('cfg', (3, 5), (8,))
  return prompts_BP * params + limit, lengths_B / (sampling.temperature or 1)


def test_programs_are_compiled_once_and_parameters_are_used_as_they_lie(monkeypatch):
  monkeypatch.setattr(engines, 'generate', stub)
  heard = []

  def announce(what):
    heard.append(what)
    return contextlib.nullcontext()

  engine = Engine('cfg', (3, 5), announce=announce)
  for params in (jnp.int32(1), jnp.int32(7)):  # new weights, no new program
    rows, halves = engine(params, PROMPTS, LENGTHS, KEYS, Sampling(2.0), 4)
    np.testing.assert_array_equal(rows, PROMPTS * int(params) + 4)
    np.testing.assert_array_equal(halves, LENGTHS / 2)
  engine(jnp.int32(1), PROMPTS, LENGTHS, KEYS, Sampling(2.0), 5)
  engine(jnp.int32(1), PROMPTS[:, :2], LENGTHS, KEYS, Sampling(2.0), 5)
  engine(jnp.int32(1), PROMPTS, LENGTHS, KEYS, Sampling(), 5)
  assert heard == [
    'rollout of 4 tokens',
    'rollout of 5 tokens',
    'rollout of 5 tokens again: prompts_BP int32[8, 3] -> int32[8, 2]',
    'rollout of 5 tokens',
  ]


def test_a_caller_that_does_not_pad_is_told(monkeypatch):
  monkeypatch.setattr(engines, 'generate', stub)
  monkeypatch.setattr(engines, 'SHAPES', 2)
  engine, width = Engine('cfg', (3, 5)), lambda n: PROMPTS[:, :n]
  for n in (1, 2, 1):
    engine(jnp.int32(1), width(n), LENGTHS, KEYS, Sampling(), 4)
  with pytest.raises(RuntimeError, match='the limit is traces=2: pad to shapes seen before'):
    engine(jnp.int32(1), width(3), LENGTHS, KEYS, Sampling(), 4)


def test_on_a_mesh_rows_are_split_over_the_batch_axes(monkeypatch):
  monkeypatch.setattr(engines, 'generate', stub)
  mesh = meshes.make(Mesh(fsdp=2, expert=2, tensor=2))
  with jax.set_mesh(mesh):
    made, _ = Engine('cfg', (3, 5), mesh)(jnp.int32(1), PROMPTS, LENGTHS, KEYS, Sampling(), 4)
  np.testing.assert_array_equal(made, PROMPTS + 4)
  assert {shard.data.shape for shard in made.addressable_shards} == {(2, 3)}
