"""A 32-bit checksum of every array, computed where the array lies.

    sum over positions p of  mix(bits[p] + p * 0x9E3779B9)   mod 2^32

bits: the elements' bit patterns, widened to uint32 words (an 8-byte element is two words); p: the
word's linear index in the logical array. The sum does not depend on its order, so it is the same on
every mesh and any number of processes. `mix` is a bijection (the finalizer of MurmurHash3, public
domain): one changed word is always found, several with probability 1 - 2^-32. A plain sum of words
times odd weights would not do: it misses every even number of flipped sign bits.

Cost: one read of the arrays and about 10 integer operations a word; XLA fuses index, mix and sum,
so nothing is stored. One program for all leaves; each result is a replicated scalar, so that
fetching it waits for the devices but asks no other process. `part` sums a stretch of an array that
is whole nowhere: a loop over blocks that stay in the first-level cache, 4 GB/s on one CPU core.
"""

import collections
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

SPREAD = 0x9E3779B9  # 2^32 / golden ratio: neighbouring positions fall far apart
PIECE = 1 << 20  # elements that `part` takes at a time: they stay in the second-level cache
BLOCK = 1024  # elements that it sums side by side: XLA vectorizes this, and not one long sum


def start(leaves: Sequence[jax.Array]) -> Callable[[], list[int]]:
  """Dispatches the checksums without blocking; the returned function fetches them, in order."""
  groups = collections.defaultdict(list)  # a program runs on one set of devices
  for i, leaf in enumerate(leaves):
    groups[frozenset(leaf.sharding.device_set)].append(i)
  made = [(where, _program([leaves[i] for i in where])) for where in groups.values()]

  def fetch() -> list[int]:
    found = {i: int(x) for where, sums in made for i, x in zip(where, jax.device_get(sums))}
    return [found[i] for i in range(len(leaves))]

  return fetch


def checksum(x: jax.Array) -> jax.Array:
  """The checksum of one array, a uint32 scalar."""
  words = _words(x)
  return jnp.sum(_mix(words + _positions(words.shape) * jnp.uint32(SPREAD)), dtype=jnp.uint32)


def part(x: np.ndarray, first: int) -> int:
  """What x adds to the checksum of an array whose elements from number `first` on it holds."""
  x_N, sums = x.reshape(-1), []
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    for start in range(0, x_N.size, PIECE):
      piece = x_N[start : start + PIECE]
      count = np.uint32(piece.size)
      if count < PIECE:  # one shape, one program
        piece = np.concatenate([piece, np.zeros(PIECE - count, x.dtype)])
      sums.append(_part(piece, np.uint32((first + start) % 2**32), count))
  return sum(map(int, sums)) % 2**32


@jax.jit
def _part(x_N: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
  """The sum over the first `count` elements; first: the position of the first."""
  words = 2 if x_N.dtype.itemsize == 8 else 1
  at = jax.lax.iota(jnp.uint32, BLOCK * words)

  def add(i: jax.Array, sums: jax.Array) -> jax.Array:
    block = jax.lax.dynamic_slice_in_dim(x_N, i * BLOCK, BLOCK)
    here = at + i.astype(jnp.uint32) * jnp.uint32(BLOCK * words)
    mixed = _mix(_words(block).reshape(-1) + (here + first * words) * jnp.uint32(SPREAD))
    return sums + jnp.where(here < count * words, mixed, 0)

  sums = jax.lax.fori_loop(0, x_N.size // BLOCK, add, jnp.zeros(BLOCK * words, jnp.uint32))
  return jnp.sum(sums, dtype=jnp.uint32)


@jax.jit
def _program(leaves: list[jax.Array]) -> list[jax.Array]:
  return [checksum(leaf) for leaf in leaves]


def _words(x: jax.Array) -> jax.Array:
  """The bits of each element as uint32; an 8-byte element gives a last axis of two."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  info = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
  bits = min(info(x.dtype).bits, 32)
  return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{bits}')).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Each element's linear index mod 2^32, made of iotas, so that every shard makes its own."""
  axes = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
  sizes = [jnp.uint32(size) for size in shape]
  start = jnp.zeros(shape, jnp.uint32)
  return functools.reduce(lambda sofar, axis: sofar * axis[0] + axis[1], zip(sizes, axes), start)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
