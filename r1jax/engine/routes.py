"""Which experts each position chose, on the host: kept by place of the pool, as the cache is.

So they are there for all that share a page, however their tokens were computed.
"""

from collections.abc import Sequence

import jax
import numpy as np

from r1jax.engine.generate import empty_routes
from r1jax.model.config import ModelConfig


def places(pages: Sequence[int], page: int, start: int, count: int) -> np.ndarray:
  """Where positions start … start+count−1 of a table of pages lie among all places of the pool."""
  at = np.arange(start, start + count)
  return np.asarray(pages, np.int32)[at // page] * page + at % page


class Routes:
  """Expert ids of `size` places: [run][block] of [n, places, A], None where dense."""

  def __init__(self, cfg: ModelConfig, size: int):
    one = jax.eval_shape(lambda: empty_routes(cfg, 1, 1))
    zeros = lambda x: np.zeros((x.shape[0], size, x.shape[-1]), np.int32)
    self._kept = jax.tree.map(zeros, one)

  def put(self, where: np.ndarray, new: tuple, row: int) -> None:
    """Keeps those of a row of a step's routes [n, B, L, A], whose first belong to `where`."""

    def one(kept: np.ndarray, ids_nBLA: np.ndarray) -> None:
      kept[:, where] = ids_nBLA[:, row, : len(where)]

    jax.tree.map(one, self._kept, new)

  def take(self, where: np.ndarray) -> tuple:
    """Those of these places."""
    return jax.tree.map(lambda kept: kept[:, where], self._kept)
