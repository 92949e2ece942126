"""Pieces of some positions of every row give what the whole gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.chunks import over_chunks


@pytest.mark.parametrize('chunk, piece', [(1, 1), (6, 3), (14, 7), (99, 7)])
def test_results_return_in_order_and_the_carry_counts_every_position_once(chunk, piece):
  x_BLD = np.arange(2 * 7 * 3, dtype=np.float32).reshape(2, 7, 3)
  shapes = []

  def one(total, arrays):
    x_BCD, y_BC = arrays
    shapes.append(x_BCD.shape)
    return total + y_BC.sum(), {'twice': 2 * x_BCD, 'sum': x_BCD.sum(-1) + y_BC}

  total, made = over_chunks(one, jnp.zeros(()), (x_BLD, np.ones((2, 7), np.float32)), chunk)
  assert shapes[0] == (2, piece, 3)
  assert total == 14
  np.testing.assert_array_equal(made['twice'], 2 * x_BLD)
  np.testing.assert_array_equal(made['sum'], x_BLD.sum(-1) + 1)
