"""Parameters born in place: initialized directly under their sharding, never whole on one device.

Batches and host values go onto meshes that span processes too; there each process makes the shards
of its own devices and nothing is sent.

Linen's partition boxes exist only in here: `init` reads the logical axis names from them and
returns plain arrays.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


def onto(mesh: jax.sharding.Mesh | None, boxed: Any, params: Any) -> Any:
  """The same weights where `init` would have put them; what lies there is not copied.

  Without a mesh they go onto one device. Leaves that the model does not name (adapters, parts of
  composite weights) stay if they lie on the mesh's devices, else they are replicated over them.
  """
  if mesh is None:
    alone = lambda x: isinstance(x, jax.Array) and len(x.sharding.device_set) == 1
    return jax.tree.map(lambda x: x if alone(x) else jax.device_put(x, jax.devices()[0]), params)
  known, devices = tree.flatten_named(shardings(mesh, boxed)), set(mesh.devices.flat)

  def one(path: str, x: Any) -> jax.Array:
    want = known.get(path)
    here = isinstance(x, jax.Array) and x.sharding.device_set == devices
    if here and (want is None or x.sharding.is_equivalent_to(want, x.ndim)):
      return x
    return jax.device_put(x, want or replicated(mesh))

  return tree.map_named(one, params)


def jit_init(f: Callable, mesh: jax.sharding.Mesh | None, params: Any) -> Any:
  """f(params) under jit, with its result placed like params."""
  if mesh is None:
    return jax.jit(f)(params)
  return jax.jit(f, out_shardings=like(mesh, params, jax.eval_shape(f, params)))(params)


def rows(
  mesh: jax.sharding.Mesh | None,
  batch: Any,
  axis: Any = 0,
  lines: np.ndarray | None = None,
  total: int | None = None,
) -> Any:
  """A host batch onto the devices, split along `axis`: a number, or a tree of them by leaf.

  Every process holds the whole batch; or only its rows `lines` (sorted numbers, those of `lines_of`
  among them) of the `total`. Leaves are host arrays or random keys. What several processes hold
  must be the same; it is not compared.
  """
  if (lines is None) != (total is None):
    raise ValueError('rows: lines and total go together')
  if mesh is None:
    return jax.tree.map(jnp.asarray, batch)
  if lines is not None and len(lines) == total:
    lines = total = None

  def put(x: Any, a: int) -> jax.Array:
    count = x.shape[a] if total is None else total
    check_rows(mesh, count)
    return _assemble(x, row_sharding(mesh, a), a, lines, total)

  axis = jax.tree.map(lambda _: axis, batch) if isinstance(axis, int) else axis
  return jax.tree.map(put, batch, axis)


def lines_of(mesh: jax.sharding.Mesh | None, count: int) -> np.ndarray:
  """The rows of a batch of `count` that this process' devices hold: sorted numbers."""
  if mesh is None:
    return np.arange(count)
  check_rows(mesh, count)
  held = row_sharding(mesh, 0).addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[index] for index in held]))


def put(mesh: jax.sharding.Mesh | None, values: Any) -> Any:
  """Host arrays or keys that are the same on every process, unchecked, whole onto every device."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, values)
  return jax.tree.map(lambda x: _assemble(x, replicated(mesh)), values)


def scalar(mesh: jax.sharding.Mesh | None, x: int | float | np.generic) -> jax.Array:
  """A number that is the same on every process, onto every device."""
  return put(mesh, np.asarray(x))


def row_sharding(mesh: jax.sharding.Mesh, axis: int) -> jax.sharding.NamedSharding:
  """A batch's place: split along this axis, whole along the others."""
  return jax.sharding.NamedSharding(mesh, jax.P(*(None,) * axis, rules.ACTIVATIONS['batch']))


def _assemble(
  x: Any,
  where: jax.sharding.Sharding,
  axis: int = 0,
  lines: np.ndarray | None = None,
  total: int | None = None,
) -> jax.Array:
  """The array at its place, from all of it or from `lines` of its `total` rows along the axis."""
  if lines is None and isinstance(x, jax.Array):
    if x.sharding == where:
      return x  # of several processes none has all of it
    if where.is_fully_addressable:
      return jax.device_put(x, where)  # never over the host
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _assemble(jax.random.key_data(x), where, axis, lines, total)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  host = np.asarray(x)
  if lines is None:
    return jax.make_array_from_callback(host.shape, where, host.__getitem__)

  def pick(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[axis].indices(total)
    first = int(np.searchsorted(lines, start))
    here = slice(first, first + stop - start)
    ends = lines[here][[0, -1]].tolist() if first < len(lines) else []
    if ends != [start, stop - 1]:  # sorted: with its ends all are there
      raise ValueError(f'rows {start} to {stop - 1} of {total} are not all held here; see lines_of')
    return host[(*index[:axis], here, *index[axis + 1 :])]

  shape = (*host.shape[:axis], total, *host.shape[axis + 1 :])
  return jax.make_array_from_callback(shape, where, pick)


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
