"""Parameters born in place: initialized directly under their sharding, never whole on one device.

Linen's partition boxes exist only in here: `init` reads the logical axis names from them and
returns plain arrays.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
  with _no_mesh():
    return jax.eval_shape(model.init, jax.random.key(0), *args)['params']


def _no_mesh() -> AbstractContextManager:
  """No mesh in context: the inputs of an init are too small to be split, and only shapes matter."""
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


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
  where = None if mesh is None else shardings(mesh, abstract(model, *args))
  with _no_mesh():
    return jax.jit(fresh, out_shardings=where)(key)


def like(mesh: jax.sharding.Mesh, params: Any, derived: Any) -> Any:
  """Shardings for a tree made from params (optimizer state, reference), abstract or not.

  A leaf whose path ends in a parameter's path and has its shape lives where the parameter lives;
  all else is replicated.
  """
  known = tree.flatten_named(params)
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
  """A host batch onto the devices, split along `axis`: a number, or a tree of them by leaf."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, batch)
  table = rules.ACTIVATIONS['batch']

  def put(x: Any, a: int) -> jax.Array:
    check_rows(mesh, x.shape[a])
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P(*(None,) * a, table)))

  axis = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
  return jax.tree.map(put, batch, axis)


def check_rows(mesh: jax.sharding.Mesh | None, count: int) -> None:
  """A batch of so many rows splits evenly over the mesh, or it is an error."""
  table = rules.ACTIVATIONS['batch']
  shards = 1 if mesh is None else rules.axis_size(table, dict(mesh.shape))
  if count % shards:
    raise UserError(
      f'a batch of {count} rows does not split over {shards} devices '
      f'(mesh axes {", ".join(table)}); choose a multiple'
    )


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
