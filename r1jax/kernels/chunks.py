"""Queries in pieces: an op that is linear in memory handles some positions of all rows at a time.

A piece is the same positions of every row, so that rows stay on the devices that hold them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_chunks(
  one: Callable[[Any, Any], tuple[Any, Any]], carry: Any, arrays: Any, chunk: int
) -> tuple[Any, Any]:
  """(carry, results [B, L, …]) of one(carry, piece) over pieces of some `chunk` positions in all.

  arrays: a tree of [B, L, …]; what is added to fill the last piece is zero.
  """
  B, L = jax.tree.leaves(arrays)[0].shape[:2]
  size = min(L, max(1, chunk // B))

  def cut(x_BL: jax.Array) -> jax.Array:
    x_BL = jnp.pad(x_BL, ((0, 0), (0, -L % size), *((0, 0),) * (x_BL.ndim - 2)))
    return jnp.moveaxis(x_BL.reshape(B, -1, size, *x_BL.shape[2:]), 1, 0)

  def whole(y_nBC: jax.Array) -> jax.Array:
    return jnp.moveaxis(y_nBC, 0, 1).reshape(B, -1, *y_nBC.shape[3:])[:, :L]

  carry, made = jax.lax.scan(one, vary_like(carry, arrays), jax.tree.map(cut, arrays))
  return carry, jax.tree.map(whole, made)


def vary_like(tree: Any, like: Any) -> Any:
  """The tree, inside shard_map marked to differ wherever an array of `like` does.

  What starts a loop has to be marked as what it adds up; the gradient of the mark is a sum.
  """
  axes = frozenset().union(*(jax.typeof(x).mat.varying for x in jax.tree.leaves(like)))

  def mark(x: jax.Array) -> jax.Array:
    return jax.lax.pcast(x, tuple(axes - jax.typeof(x).mat.varying), to='varying')

  return jax.tree.map(mark, tree)
