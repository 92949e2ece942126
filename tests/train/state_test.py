"""What training carries: placed, counted, and copied where a copy is meant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.train import state


def test_fresh_places_moments_beside_parameters():
  mesh = meshes.make(Mesh(fsdp=8))
  where = jax.sharding.NamedSharding(mesh, jax.P('fsdp'))
  params = {'w': jax.device_put(jnp.ones((8, 3)), where)}
  made = state.fresh(params, optax.adam(1.0), mesh, step=5)
  assert made.params is params and made.reference is None
  assert int(made.step) == 5 and made.step.sharding.is_fully_replicated
  assert made.opt[0].mu['w'].sharding == where
  assert not np.asarray(made.opt[0].mu['w']).any()
  assert state.fresh({'w': jnp.ones(2)}, optax.sgd(1.0), None).step.dtype == jnp.int32


def test_a_copy_outlives_what_it_was_made_from():
  tree = {'a': jnp.arange(3), 'b': None}
  copy = state.copy(tree)
  tree['a'].delete()
  assert copy['a'].tolist() == [0, 1, 2] and copy['b'] is None
