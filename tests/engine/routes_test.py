"""Experts by place of the pool."""

import numpy as np

from r1jax.engine.routes import Routes, places
from r1jax.model.types import Choices
from tests.engine.mixed import MIXED


def test_positions_lie_in_the_pages_of_their_table():
  assert places([5, 2, 9], 4, 3, 6).tolist() == [23, 8, 9, 10, 11, 36]
  assert places([5], 4, 0, 0).tolist() == []


def test_what_is_put_is_found_by_place_and_dense_blocks_have_none():
  routes = Routes(MIXED, 8)
  new = ((Choices(np.arange(1, 13).reshape(1, 2, 3, 2)),), (Choices(),))
  routes.put(np.array([6, 1]), new, 1)
  ((found,), (dense,)) = routes.take(np.array([1, 6, 0]))
  assert found.experts.tolist() == [[[9, 10], [7, 8], [0, 0]]] and dense == Choices()
