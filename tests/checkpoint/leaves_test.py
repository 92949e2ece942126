"""Names, descriptions and differences of trees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.checkpoint import leaves
from r1jax.checkpoint.errors import CheckpointError


class Pair(NamedTuple):
  a: jax.Array
  b: tuple


TREE = {'x': Pair(jnp.zeros((2, 3), jnp.bfloat16), (None, jnp.asarray(True), {})), 'y': 3}


def test_names_and_descriptions():
  assert list(leaves.named(TREE)) == ['x/a', 'x/b/1', 'y']
  assert leaves.describe(TREE) == {'x/a': 'bfloat16[2, 3]', 'x/b/1': 'bool[]', 'y': 'int[]'}
  shapes = jax.eval_shape(lambda: TREE['x'])
  assert leaves.describe(shapes) == {'a': 'bfloat16[2, 3]', 'b/1': 'bool[]'}


def test_mismatch():
  saved = {'a': 'int8[]', 'b': 'int8[2]'}
  assert leaves.mismatch(saved, dict(saved), partial=False) is None
  assert leaves.mismatch(saved, {'a': 'int8[]'}, partial=True) is None
  assert leaves.mismatch(saved, {}, partial=True) == 'the template names no array'
  got = leaves.mismatch(saved, {'a': 'int8[]', 'c': 'int8[]'}, partial=False)
  assert got == 'b is int8[2], asked for nothing; c is absent, asked for int8[]'


@pytest.mark.parametrize(
  ('leaf', 'match'),
  [
    (3, 'a is a int'),
    (np.zeros(2), 'a is a ndarray'),
    (jax.random.key(0), 'key_data'),
    (jnp.zeros((0, 3)), 'no elements'),
  ],
)
def test_leaves_that_cannot_be_kept(leaf, match):
  with pytest.raises(CheckpointError, match=match):
    leaves.check({'a': leaf})


def test_places():
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
  shape = jax.ShapeDtypeStruct((2,), 'int8', sharding=sharding)
  got = leaves.places({'a': shape, 'b': jax.ShapeDtypeStruct((), 'bool')})
  assert got['a'].sharding == sharding and got['a'].global_shape == (2,)
  assert got['b'].sharding.device_set == {jax.devices()[0]} and got['b'].dtype == bool


def test_parse_is_the_way_back_from_describe():
  held = {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': jnp.zeros((), jnp.int32)}
  for name, said in leaves.describe(held).items():
    assert leaves.parse(said) == jax.ShapeDtypeStruct(held[name].shape, held[name].dtype)
