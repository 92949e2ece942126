"""The seam between generation and everything else: prompts and keys in, samples out.

One compiled program for each (sampling, limit, kept sets or not, shape), a new one announced with
what changed; the caller's parameters are used as they lie, never copied.
"""

import functools
from typing import Any

import jax
import numpy as np

from r1jax.core.program import Announce, Program, silent
from r1jax.engine.generate import Samples, generate
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.sharding import place

SHAPES = 64  # batches and prompt widths of one engine; more means that a caller does not pad


def without_routes(*args: Any, **settings: Any) -> Samples:
  """Samples of a caller that replays nothing: XLA then keeps no choices either."""
  return generate(*args, **settings)._replace(routes=None)


class Engine:
  """Static batches: every row runs until all have stopped."""

  def __init__(
    self,
    cfg: ModelConfig,
    stops: tuple[int, ...],
    mesh: jax.sharding.Mesh | None = None,
    announce: Announce = silent,
    routes: bool = True,
  ):
    self.cfg, self.stops, self.mesh, self._announce = cfg, tuple(stops), mesh, announce
    self._write = generate if routes else without_routes
    self._programs: dict[tuple, Program] = {}

  def __call__(
    self,
    params: Any,
    prompts_BP: np.ndarray,
    lengths_B: np.ndarray,
    key_B: jax.Array,
    sampling: Sampling,
    limit: int,
    keep_support: bool = False,
  ) -> Samples:
    """Completes right-padded prompts; on a mesh the rows are split over its batch axes."""
    name = (sampling, limit, keep_support)
    if name not in self._programs:
      f = functools.partial(
        self._write, cfg=self.cfg, sampling=sampling, stops=self.stops, limit=limit,
        keep_support=keep_support,
      )  # fmt: skip
      kind = 'rollout' if sampling.temperature else 'greedy rollout'
      what = f'{kind} of {limit} tokens'
      self._programs[name] = Program(what, f, self._announce, traces=SHAPES)
    rows = place.rows(self.mesh, (prompts_BP, lengths_B, key_B))
    return self._programs[name](params, *rows)
