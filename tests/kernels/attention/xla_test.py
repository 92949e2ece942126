"""XLA's path holds two blocks at a time: memory and flops of a band grow with the length alone."""

import functools

import jax
import jax.numpy as jnp
import pytest

from r1jax.kernels.attention import xla
from r1jax.kernels.attention.blocks import Blocks, plan
from r1jax.kernels.attention.lists import Band, Sizes, Tokens

pytestmark = pytest.mark.optimized

SIZES = Sizes(16, 16)


def program(length, band, keys):
  """Forward and backward over `length` queries and `keys` keys, compiled."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  tokens = lambda n: Tokens(*(jax.ShapeDtypeStruct((1, n), jnp.int32),) * 2)
  rows = shape(1, length, 2, 8), shape(1, keys, 1, 8), shape(1, keys, 1, 4)

  def run(q, k, v, queries, there):
    way = plan(queries, there, band, Blocks(SIZES, SIZES, SIZES))
    o, lse = xla.forward(q, k, v, queries, there, band, way.forward, 1.0)
    return xla.backward(q, k, v, o, lse, lse, queries, there, band, way.forward, 1.0)

  return jax.jit(run).lower(*rows, tokens(length), tokens(keys)).compile()


temporaries = functools.cache(lambda *told: program(*told).memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize('band, keys', [(Band(0, 24), None), (Band(), None), (Band(24), 64)])
def test_memory_is_linear_in_the_length(band, keys):
  at = [temporaries(n, band, keys or n) for n in (512, 1024, 2048)]
  assert at[2] - at[1] <= 2.1 * (at[1] - at[0]), at
  assert at[2] < 2048 * 2048  # bytes: less than a quarter of one head's scores
