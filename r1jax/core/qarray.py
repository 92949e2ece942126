"""Leaves of a parameter tree that stand for one array and are made of several.

`Adapted` is a weight with a low-rank pair beside it (LoRA, arXiv 2106.09685):

    W = base + scale · down·up        down [*lead, *in, R],  up [*lead, R, *out]

`lead` are axes along which matrices are stacked: the layers of a run, which the scan slices off
every array alike, and the experts. Where `in` begins and ends follows from the three ranks, before
and after a slice. Its arrays are called …/base, …/down and …/up in a tree; a module sees the base's
shape. kernels/matmul and kernels/grouped compute with the pair as it is and never form down·up:
2·T·R·(in + out) flops a product more. `dense` forms it, 2·R·in·out flops.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A weight and its adapters; halves of a split tree hold None in place of some of the arrays."""

  base: Any
  down: Any
  up: Any
  scale: float = dataclasses.field(metadata={'static': True})

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array it stands for."""
    return self.base.shape

  @property
  def dtype(self) -> jnp.dtype:
    """Of the base; the adapters have their own."""
    return self.base.dtype

  @property
  def ndim(self) -> int:
    """Axes of the array it stands for."""
    return self.base.ndim

  @property
  def inputs(self) -> int:
    """How many axes of the base are those of `in`."""
    return self.base.ndim - self.up.ndim + 1

  @property
  def lead(self) -> int:
    """How many axes of the base come before those."""
    return self.down.ndim - 1 - self.inputs


Weight = jax.Array | Adapted


def factors(whole: tuple, lead: int, inputs: int, rank: Any) -> tuple[tuple, tuple]:
  """The same of down and of up as `whole` is of the base: sizes, names or mesh axes of its axes."""
  split = lead + inputs
  return (*whole[:split], rank), (*whole[:lead], rank, *whole[split:])


def by_axes(w: Weight, names: tuple, f: Callable[[tuple], Any]) -> Any:
  """f(names of an array's axes) for every array of the leaf; the rank's name is None."""
  if not isinstance(w, Adapted):
    return f(names)
  down, up = factors(names, w.lead, w.inputs, None)
  return Adapted(f(names), f(down), f(up), w.scale)


def dense(w: Weight) -> jax.Array:
  """The array that the leaf stands for; the pair's product is made and added in at least fp32."""
  if not isinstance(w, Adapted):
    return w
  axes = 'abcdefgh'[: w.ndim]
  down, up = (''.join(part) for part in factors(tuple(axes), w.lead, w.inputs, 'r'))
  wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (w.base, w.down, w.up)]
  product = jnp.einsum(f'{down},{up}->{axes}', *wide[1:], precision='highest')
  return wide[0] + w.scale * product


def rows(w_VD: Weight, ids: jax.Array) -> jax.Array:
  """Rows of the array that the leaf stands for: of a table of embeddings, say."""
  if not isinstance(w_VD, Adapted):
    return jnp.take(w_VD, ids, axis=0)
  base, down = (jnp.take(x, ids, axis=0) for x in (w_VD.base, w_VD.down))
  return base + w_VD.scale * jnp.einsum('...R,RD->...D', down, w_VD.up)


def check(where: str, w: Weight, shape: tuple[int, ...]) -> None:
  """Raises where the leaf does not stand for an array of this shape."""
  if w.shape != shape:
    raise ValueError(f'weight {where} has shape {w.shape}, the config asks for {shape}')
  if not isinstance(w, Adapted):
    return
  pair = w.down.shape, w.up.shape
  if min(w.lead, w.inputs - 1) < 0 or pair != factors(shape, w.lead, w.inputs, pair[0][-1]):
    raise ValueError(
      f'weight {where} of shape {shape} has adapters of shapes {pair[0]} and {pair[1]}, whose '
      'product has another; attach them to this weight anew'
    )
