"""Parameters out of a checkpoint, whatever dtype they were stored in.

A trainer needs fp32 masters. Who only computes with them keeps what is stored, except that weights
narrower than the activations are widened once here rather than at every use: the numbers of each
matmul are the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from r1jax.checkpoint import leaves
from r1jax.checkpoint.store import Store
from r1jax.core import tree
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place


def masters(store: Store, step: int, cfg: ModelConfig, mesh: jax.sharding.Mesh | None) -> Any:
  """fp32 parameters to train, on the mesh."""
  return _cast(stored(store, step, cfg, mesh), lambda _: jnp.dtype('float32'))


def weights(store: Store, step: int, cfg: ModelConfig, mesh: jax.sharding.Mesh | None) -> Any:
  """Parameters to compute with, at least as wide as the activations."""
  return _cast(
    stored(store, step, cfg, mesh), lambda given: jnp.promote_types(given, jnp.dtype(cfg.dtype))
  )


def stored(store: Store, step: int, cfg: ModelConfig, mesh: jax.sharding.Mesh | None) -> Any:
  """Parameters as they are in the checkpoint."""
  held = store.describe(step)
  boxed = place.abstract(Transformer(cfg), dummy_inputs(cfg))

  def typed(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    found = held.get(f'params/{path}')
    dtype = leaves.parse(found).dtype if found else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  wanted = tree.map_named(typed, place.templates(mesh, boxed))
  return store.restore({'params': wanted}, step, partial=True)['params']


def _cast(params: Any, dtype: Any) -> Any:
  """Leaf by leaf, so that what was stored goes as what is cast comes: never two whole trees."""
  flat, form = jax.tree.flatten(params)
  del params  # nor does the caller hold it
  for i, x in enumerate(flat):
    flat[i] = jax.block_until_ready(x.astype(dtype(x.dtype)))
  return jax.tree.unflatten(form, flat)
