"""Keys by name: a row's key does not depend on the rows beside it."""

import jax
import numpy as np

from r1jax.core import prng

data = lambda keys: np.asarray(jax.random.key_data(keys))


def test_fold_is_a_chain_of_fold_ins():
  key = jax.random.key(3)
  by_hand = jax.random.fold_in(jax.random.fold_in(key, 5), 7)
  np.testing.assert_array_equal(data(prng.fold(key, 5, 7)), data(by_hand))
  np.testing.assert_array_equal(data(prng.fold(key)), data(key))
  assert (data(prng.fold(key, 5, 7)) != data(prng.fold(key, 7, 5))).any()


def test_a_rows_key_is_its_own():
  key, a, b = jax.random.key(0), np.array([4, 0, 4, 9]), np.array([1, 1, 2, 0])
  alone = [data(prng.fold(key, x, y)) for x, y in zip(a.tolist(), b.tolist())]
  np.testing.assert_array_equal(data(prng.fold_rows(key, a, b)), np.stack(alone))
  order = np.array([2, 0, 3, 1])
  shuffled = data(prng.fold_rows(key, a[order], b[order]))
  np.testing.assert_array_equal(shuffled, np.stack(alone)[order])
  assert len({row.tobytes() for row in alone}) == 4
