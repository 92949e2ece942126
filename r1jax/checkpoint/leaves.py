"""The leaves of a tree by name: what they are, whether they can be kept, where they go.

A name is the path of a leaf, 'params/run0/kernel'; it is the same in a state, in its template and
in `checkpoint.json`.
"""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp

from r1jax.checkpoint.errors import CheckpointError


def named(tree: Any) -> dict[str, Any]:
  """The leaves by name, in the order of the tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def describe(tree: Any) -> dict[str, str]:
  """{'params/run0/kernel': 'float32[8, 4]'} of arrays or of their shapes."""
  return {
    name: f'{getattr(leaf, "dtype", type(leaf).__name__)}{[*getattr(leaf, "shape", ())]}'
    for name, leaf in named(tree).items()
  }


def parse(described: str) -> jax.ShapeDtypeStruct:
  """The inverse: 'float32[8, 4]' as dtype and shape."""
  dtype, _, shape = described.rstrip(']').partition('[')
  return jax.ShapeDtypeStruct(json.loads(f'[{shape}]'), dtype)


def check(tree: Any) -> None:
  """Refuses what Orbax would refuse half-way, or give back as something else."""
  for name, leaf in named(tree).items():
    if not isinstance(leaf, jax.Array):
      raise CheckpointError(
        f'{name} is a {type(leaf).__name__}; a checkpoint holds jax.Arrays: jnp.asarray it'
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise CheckpointError(f'{name} is a random key: save jax.random.key_data of it')
    if leaf.size == 0:
      raise CheckpointError(f'{name} has shape {leaf.shape}: no elements to save, drop it')


def mismatch(saved: dict[str, str], given: dict[str, str], partial: bool) -> str | None:
  """How two descriptions differ; `partial` forgives what `given` does not name."""
  if partial and not given:
    return 'the template names no array'
  names = sorted(given.keys() if partial else given.keys() | saved.keys())
  wrong = [name for name in names if given.get(name) != saved.get(name)]
  if not wrong:
    return None
  shown = '; '.join(
    f'{n} is {saved.get(n, "absent")}, asked for {given.get(n, "nothing")}' for n in wrong[:3]
  )
  return shown + (f' and {len(wrong) - 3} more' if len(wrong) > 3 else '')


def places(template: Any) -> Any:
  """Orbax's restore arguments: the template's shardings, the first device where it has none."""

  def place(leaf: Any) -> ocp.ArrayRestoreArgs:
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return ocp.ArrayRestoreArgs(
      sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
    )

  return jax.tree.map(place, template)
