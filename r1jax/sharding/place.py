"""Parameters born in place: initialized directly under their sharding, never whole on one device.

Linen's partition boxes exist only in here: `init` reads the logical axis names from them and returns plain arrays.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from r1jax.core import tree
from r1jax.core.errors import UserError
from r1jax.sharding import rules


def abstract(model: nn.Module, *args: Any) -> Any:
  """Shapes of the parameters in Linen's boxes, without memory; args are the module's inputs."""
  return jax.eval_shape(model.init, jax.random.key(0), *args)['params']


def shardings(mesh: jax.sharding.Mesh, boxed: Any) -> Any:
  """A NamedSharding a parameter, from the logical names in its box."""

  def one(path: str, box: Any) -> jax.sharding.NamedSharding:
    if not isinstance(box, meta.AxisMetadata):
      raise TypeError(f'parameter {path} has no logical axes; declare it by weight()')
    return rules.weight_sharding(mesh, path, box.unbox().shape, box.names)

  is_box = lambda x: isinstance(x, meta.AxisMetadata)
  leaves, structure = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)
  return structure.unflatten([one(tree.name(p), box) for p, box in leaves])


def init(model: nn.Module, key: jax.Array, mesh: jax.sharding.Mesh | None, *args: Any) -> Any:
  """Fresh parameters as plain arrays; under a mesh each device makes only its own shards."""
  fresh = lambda k: meta.unbox(model.init(k, *args)['params'])
  if mesh is None:
    return jax.jit(fresh)(key)
  return jax.jit(fresh, out_shardings=shardings(mesh, abstract(model, *args)))(key)


def like(mesh: jax.sharding.Mesh, params: Any, derived: Any) -> Any:
  """Shardings for a tree made from params (optimizer state, reference), abstract or not.

  A leaf whose path ends in a parameter's path and has its shape lives where the parameter lives; all else is
  replicated.
  """
  known = {p: x for p, x in tree.flatten_named(params).items()}
  replicated = jax.sharding.NamedSharding(mesh, jax.P())

  def one(path: str, leaf: Any) -> jax.sharding.Sharding:
    parts = path.split('/')
    for i in range(len(parts)):
      param = known.get('/'.join(parts[i:]))
      if param is not None and param.shape == leaf.shape:
        return param.sharding
    return replicated

  return tree.map_named(one, derived)


def jit_init(f: Callable, mesh: jax.sharding.Mesh | None, params: Any) -> Any:
  """f(params) under jit, with its result placed like params."""
  if mesh is None:
    return jax.jit(f)(params)
  return jax.jit(f, out_shardings=like(mesh, params, jax.eval_shape(f, params)))(params)


def rows(mesh: jax.sharding.Mesh | None, batch: Any, axis: Any = 0) -> Any:
  """A host batch onto the devices, split along each leaf's batch axis; `axis` is a number or a tree of them."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, batch)
  table = rules.ACTIVATIONS['batch']
  shards = rules.axis_size(table, dict(mesh.shape))

  def put(x: Any, a: int) -> jax.Array:
    if x.shape[a] % shards:
      raise UserError(
        f'a batch of {x.shape[a]} rows does not split over {shards} devices (mesh axes {", ".join(table)}); '
        'choose a multiple'
      )
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*(None,) * a, table)))

  axis = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
  return jax.tree.map(put, batch, axis)


def of(tree_: Any) -> Any:
  """The shardings that a tree of arrays has now."""
  return jax.tree.map(lambda x: x.sharding, tree_)


def replicated(mesh: jax.sharding.Mesh | None) -> jax.sharding.Sharding | None:
  """Whole on every device; None without a mesh."""
  return None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())


def templates(mesh: jax.sharding.Mesh | None, boxed: Any) -> Any:
  """ShapeDtypeStructs of boxed abstract parameters, with their places: what a restore asks for."""
  shapes = meta.unbox(boxed)
  if mesh is None:
    return shapes
  give = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
  return jax.tree.map(give, shapes, shardings(mesh, boxed))


def like_templates(mesh: jax.sharding.Mesh | None, params: Any, derived: Any) -> Any:
  """The same for an abstract tree made from params."""
  if mesh is None:
    return derived
  give = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
  return jax.tree.map(give, derived, like(mesh, params, derived))
