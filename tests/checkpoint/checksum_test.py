"""The checksum: its definition, its independence of the mesh, what it finds."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from r1jax.checkpoint import checksum

DTYPES = ('float32', 'bfloat16', 'float8_e4m3fn', 'int8', 'int32', 'uint32', 'bool', 'int4')


def oracle(x):
  """The same sum with Python's integers."""
  bits = x.tobytes()
  width = min(x.dtype.itemsize, 4)
  total = 0
  for p in range(len(bits) // width):
    word = int.from_bytes(bits[p * width : (p + 1) * width], 'little')
    word = (word + p * 0x9E3779B9) % 2**32
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    total += word ^ word >> 16
  return total % 2**32


def values(dtype, shape, seed=0):
  drawn = np.random.default_rng(seed).integers(0, 2, (*shape, 8))
  return jnp.asarray(drawn @ 2.0 ** np.arange(-4, 4) - 8, dtype)


def fetched(*arrays):
  return checksum.start(arrays)()


@pytest.mark.parametrize('dtype', DTYPES)
def test_definition(dtype):
  arrays = [values(dtype, shape, seed=len(shape)) for shape in ((), (1,), (7,), (3, 5), (2, 3, 5))]
  if dtype == 'int4':  # numpy keeps it in bytes, with the sign above
    want = [oracle(np.asarray(x).astype('int8').view('uint8') & 15) for x in arrays]
  else:
    want = [oracle(np.asarray(x)) for x in arrays]
  assert fetched(*arrays) == want and len(set(want)) > 3


def test_eight_bytes_are_two_words():
  with jax.enable_x64(True):
    x = jnp.asarray([1 / 3, -2.5, 1e300], jnp.float64)
    assert fetched(x) == [oracle(np.asarray(x))]


@pytest.mark.parametrize('dtype', DTYPES)
def test_parts_add_up_to_the_whole(dtype, monkeypatch):
  monkeypatch.setattr(checksum, 'PIECE', 2 * checksum.BLOCK)
  x = values(dtype, (3, 7, 983))
  flat = np.asarray(x).reshape(-1)
  ends = [0, 1, 9, 8201, x.size]  # little, a piece, and more than one
  parts = [checksum.part(flat[a:b], a) for a, b in itertools.pairwise(ends)]
  assert sum(parts) % 2**32 == fetched(x)[0]
  assert checksum.part(np.asarray(x), 0) == fetched(x)[0]


def test_parts_of_eight_bytes_and_beyond_32_bits(monkeypatch):
  monkeypatch.setattr(checksum, 'PIECE', checksum.BLOCK)
  with jax.enable_x64(True):
    x = np.arange(5000, dtype=np.int64) << 40
    parts = checksum.part(x[:4500], 0) + checksum.part(x[4500:], 4500)
    assert parts % 2**32 == fetched(jnp.asarray(x))[0]
    assert checksum.part(x, 2**31 + 7) == checksum.part(x, 7)  # positions count mod 2^32 words


@pytest.mark.parametrize('kind', ['Auto', 'Explicit'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_mesh_does_not_matter(dtype, kind):
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType[kind],) * 2)
  x = values(dtype, (8, 4, 3))
  specs = (jax.P(), jax.P('a'), jax.P('b', 'a'), jax.P(('a', 'b')))
  placed = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs]
  assert fetched(x, *placed) == fetched(x) * 5  # one device and eight in one call


@hypothesis.given(st.integers(0, 34), st.integers(1, 255))
def test_every_changed_byte_is_found(position, flip):
  x = np.arange(35, dtype=np.uint8)
  y = x.copy()
  y[position] ^= flip
  assert fetched(jnp.asarray(x).reshape(5, 7)) != fetched(jnp.asarray(y).reshape(5, 7))


def test_changes_that_cancel_in_plain_sums_are_found():
  x = jnp.arange(1.0, 13.0).reshape(3, 4)
  changed = [
    x.at[0, 0].multiply(-1).at[2, 3].multiply(-1),  # two sign bits
    x.at[0, 0].set(x[1, 1]).at[1, 1].set(x[0, 0]),  # swapped
    jnp.roll(x, 1),
    x[::-1],
    jnp.zeros_like(x),
  ]
  sums = fetched(x, *changed)
  assert len(set(sums)) == len(sums)
