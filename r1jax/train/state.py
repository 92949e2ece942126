"""What training carries from step to step, as one value."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.sharding import place


class State(NamedTuple):
  """Updates so far, parameters (router bias too), optimizer state, a frozen reference or None."""

  step: jax.Array
  params: Any
  opt: Any
  reference: Any = None


def fresh(
  params: Any,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None,
  step: int = 0,
  trained: Any = None,
) -> State:
  """A state around given parameters, the optimizer's moments placed like those that it trains."""
  opt = place.jit_init(optimizer.init, mesh, params if trained is None else trained)
  return State(place.scalar(mesh, np.int32(step)), params, opt)


def init_params(model: nn.Module, seed: int, mesh: jax.sharding.Mesh | None, inputs: Any) -> Any:
  """Seeded parameters, each device making its own shards."""
  return place.init(model, jax.random.key(seed), mesh, inputs)


def copy(tree: Any) -> Any:
  """New buffers with the same values: a reference must outlive the donated parameters."""
  return jax.tree.map(jnp.copy, tree)
