"""The memory that decode attention reads, as the engine's cache holds it: whole stacks of pages.

A stack is [n, P, S, K, W] (n layers, P pages of S places, K heads), or [n, P, S, W] for the one
head of MLA. Keys are stacks side by side, k = [k_0 | k_1 …]; values are a stack of their own, or
None: then a value is the first `width` numbers of the key (absorbed MLA: memory is read once). The
last key stack may be wider than the query needs: XLA lays a stack out page by page on TPUs only if
its width is a multiple of 128 (576 is stored as 640, which tiles of 128 would take anyway).

In int8 a vector is integers x̂ and one scale s. Nothing is dequantized: s·(q·x̂) and (p·s)·x̂ are the
same products, and integers up to 127 are exact in bfloat16.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Int8(NamedTuple):
  """Vectors (the last axis) of one scale each."""

  values: jax.Array
  scale: jax.Array


Stack = jax.Array | Int8
STEPS = 126.5  # of int8 to each side: a rounded scale must not lift x / scale above 127.5


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['keys', 'values'], meta_fields=['widths', 'width']
)
@dataclasses.dataclass(frozen=True)
class Memory:
  """Key stacks and, if there is one, the value stack; how many numbers of each are read."""

  keys: tuple[Stack, ...]
  values: Stack | None
  widths: tuple[int, ...]
  width: int

  @property
  def stacks(self) -> tuple[Stack, ...]:
    """All of them, the values last."""
    return self.keys if self.values is None else (*self.keys, self.values)

  @property
  def size(self) -> int:
    """Places of a page."""
    return numbers(self.keys[0]).shape[2]

  @property
  def heads(self) -> int:
    """Heads of keys and values."""
    x = numbers(self.keys[0])
    return x.shape[3] if x.ndim == 5 else 1


def memory_of(
  keys: Stack | tuple[Stack, ...],
  values: Stack | tuple[Stack] | None,
  query: int,
  width: int | None = None,
) -> Memory:
  """One type of all kinds of cache, for queries of a width; what does not fit is refused."""
  single = lambda x: (x,) if isinstance(x, Int8) or not isinstance(x, tuple) else tuple(x)
  keys, values = single(keys), None if values is None else single(values)[0]
  first = numbers(keys[0])
  for i, stack in enumerate(keys):
    _check(f'keys[{i}]', stack, first.shape)
  widths = [numbers(s).shape[-1] for s in keys]
  last = query - sum(widths[:-1])
  if not 0 < last <= widths[-1]:
    raise ValueError(f'queries are {query} wide, the keys {" + ".join(map(str, widths))}')
  widths[-1] = last
  if values is not None:
    _check('values', values, first.shape)
  most = widths[0] if values is None else numbers(values).shape[-1]
  width = most if width is None else width
  if not 0 < width <= most or (values is not None and width < most):
    raise ValueError(f'value_width={width} of values that are {most} wide')
  return Memory(keys, values, tuple(widths), width)


def _check(name: str, stack: Stack, first: tuple[int, ...]) -> None:
  """A stack's shape is that of the first, but for the width, and it has a scale a vector."""
  x = numbers(stack)
  if x.ndim not in (4, 5) or x.shape[:-1] != first[:-1]:
    raise ValueError(
      f'{name} of shape {x.shape}; expected [n, P, S, K, W] or [n, P, S, W], all but the last axis '
      f'as in keys[0], {first}'
    )
  if isinstance(stack, Int8) and stack.scale.shape != x.shape[:-1]:
    raise ValueError(f'{name}: scales {stack.scale.shape} for vectors {x.shape}; one each')


def numbers(stack: Stack) -> jax.Array:
  """The vectors, integers where they are scaled."""
  return stack.values if isinstance(stack, Int8) else stack


def gather(
  stack: Stack, at: tuple[jax.Array, ...], width: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array | None]:
  """(x_BMKW of this width, scale_BMK) at (layer, pages_BT[, places_BT[, heads_BT]]); beyond it 0.

  heads_BT: the one head that is read there, K = 1; else all of them.
  """
  heads = numbers(stack).shape[max(len(at), 3) : -1] or (1,)

  def one(x: jax.Array, *vector: int) -> jax.Array:
    got = x.at[at].get(mode='fill', fill_value=0)
    return got.reshape(len(got), -1, *heads, *vector)

  x = numbers(stack)
  x_BMKW = one(x, x.shape[-1])[..., :width].astype(dtype)
  return x_BMKW, one(stack.scale) if isinstance(stack, Int8) else None


def in_pool(pages_BT: jax.Array, memory: Memory) -> jax.Array:
  """Ids whose negatives lie beyond the pool: as indices they would wrap."""
  return jnp.where(pages_BT < 0, numbers(memory.keys[0]).shape[1], pages_BT)


def quantize(x: jax.Array) -> Int8:
  """The last axis as int8 values of one scale; zeros have scale 0."""
  x = x.astype(jnp.float32)
  scale = (jnp.abs(x).max(-1) / STEPS).astype(jnp.bfloat16)
  by = scale.astype(jnp.float32)[..., None]
  return Int8(jnp.round(x / jnp.where(by == 0, 1, by)).astype(jnp.int8), scale)


def dequantize(x: Int8, dtype: jnp.dtype) -> jax.Array:
  """The numbers that it stands for, multiplied in fp32."""
  return (x.values.astype(jnp.float32) * x.scale.astype(jnp.float32)[..., None]).astype(dtype)
