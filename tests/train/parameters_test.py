"""Parameters in the dtype that whoever asks computes with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.checkpoint.store import Store
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.train import parameters


@pytest.fixture
def narrow(params, tmp_path):
  """(store, parameters) in bfloat16."""
  held = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  store = Store(tmp_path)
  store.save(7, {'params': held}, {'experiment': {}}, block=True)
  return store, held


def test_stored_as_they_are(narrow, experiment):
  store, held = narrow
  got = parameters.stored(store, 7, experiment.model, None)
  jax.tree.map(np.testing.assert_array_equal, got, held)
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}


def test_masters_are_fp32_on_a_mesh(narrow, experiment):
  store, held = narrow
  mesh = meshes.make(Mesh(data=4, fsdp=2))
  got = parameters.masters(store, 7, experiment.model, mesh)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), got, held)
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype('float32')}
  assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(got))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_are_widened_to_the_activations_and_never_narrowed(narrow, experiment, dtype):
  cfg = dataclasses.replace(experiment.model, dtype=dtype)
  got = parameters.weights(narrow[0], 7, cfg, None)
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(dtype)}


def test_two_whole_trees_are_never_held(monkeypatch):
  """What is live when each leaf is cast: those done in fp32, the others as they were stored."""
  before, held = {id(x) for x in jax.live_arrays()}, []

  class Cfg:
    @property
    def dtype(self):
      held.append(sum(x.nbytes for x in jax.live_arrays() if id(x) not in before))
      return 'float32'

  stored = lambda *_: {f'w{i}': jnp.ones(1000, jnp.bfloat16) for i in range(8)}
  monkeypatch.setattr(parameters, 'stored', stored)
  got = parameters.weights(None, 0, Cfg(), None)
  assert held == [4000 * done + 2000 * (8 - done) for done in range(8)]
  assert {x.dtype for x in got.values()} == {jnp.dtype('float32')}
