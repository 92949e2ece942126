"""The only tables from logical axis names to mesh axes.

A weight names its axes where it is born (`weight(..., axes=('embed', 'ffw'))`); an activation where
it is constrained (`constrain(x_BLD, 'batch', 'length', None)`). Weights are fully sharded: `embed`
over `fsdp`, the wide axis over `tensor`, experts over `expert`. Activations are split by batch over
every axis that holds different tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from r1jax.core.errors import UserError

WEIGHTS = {
  'layers': None,
  'vocab': 'tensor',
  'embed': 'fsdp',
  'ffw': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head': None,
  'latent': None,
  'expert': 'expert',
  'router': None,
}

ACTIVATIONS = {
  'batch': ('data', 'fsdp', 'expert'),
  'tokens': ('data', 'fsdp', 'expert', 'context'),
  'length': 'context',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'vocab': 'tensor',
}


def spec(names: tuple[str | None, ...], table: dict[str, str | tuple[str, ...] | None]) -> jax.P:
  """Logical names to a PartitionSpec; an unknown name is an error that lists the known ones."""
  unknown = [n for n in names if n is not None and n not in table]
  if unknown:
    raise KeyError(f'unknown logical axis {unknown[0]!r}; known: {", ".join(sorted(table))}')
  return jax.P(*(None if n is None else table[n] for n in names))


def axis_size(entry: str | tuple[str, ...] | None, sizes: dict[str, int]) -> int:
  """Number of shards that one entry of a PartitionSpec makes."""
  if entry is None:
    return 1
  return math.prod(sizes[a] for a in ((entry,) if isinstance(entry, str) else entry))


def weight_sharding(
  mesh: jax.sharding.Mesh, path: str, shape: tuple[int, ...], names: tuple[str | None, ...]
) -> jax.sharding.NamedSharding:
  """Where a weight lives; a dimension its mesh axis does not divide is an error naming both."""
  p = spec(names, WEIGHTS)
  for size, name, entry in zip(shape, names, p):
    n = axis_size(entry, dict(mesh.shape))
    if size % n:
      raise UserError(
        f'weight {path}: axis {name!r} of size {size} is not divisible by mesh axis {entry!r} '
        f'of size {n}; change config.mesh or the model'
      )
  return jax.sharding.NamedSharding(mesh, p)


def fitting(
  shape: tuple[int, ...],
  names: tuple[str | None, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> jax.P:
  """The spec of an activation; a dimension that its mesh axes do not divide is left whole."""
  sizes, p = dict(mesh.shape), spec(names, ACTIVATIONS)
  return jax.P(*(e if size % axis_size(e, sizes) == 0 else None for size, e in zip(shape, p)))


def kv_copies(
  heads: int, kv_heads: int, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> int:
  """How often each kv head has to stand there for kv heads to be split as query heads are.

  Above 1 where there are more devices than kv heads, and the query heads of each share one.
  """
  parts = axis_size(ACTIVATIONS['heads'], dict(mesh.shape))
  return parts // kv_heads if parts % kv_heads == 0 and heads % parts == 0 else 1


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Tells the partitioner how an activation is split; without a mesh, x itself.

  A dimension that its mesh axes do not divide (a batch of one at a prompt, say) is left to the
  partitioner.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, fitting(x.shape, names, mesh))


def by_rows(f: Callable, *args: Any, axes: tuple[str, ...] = ('batch',)) -> Any:
  """f(*args) where each shard has its own part of `axes`, the first axes of all arrays in and out.

  For what the partitioner gathers onto every device though rows are independent: top-k, sorting.
  Without a mesh, or if the mesh does not divide them, f itself.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return f(*args)
  parts = [axis_size(ACTIVATIONS[name], dict(mesh.shape)) for name in axes]
  if any(n % part for x in jax.tree.leaves(args) for n, part in zip(x.shape, parts)):
    return f(*args)
  rows = spec(axes, ACTIVATIONS)
  return jax.shard_map(f, in_specs=rows, out_specs=rows)(*args)
