"""A batch of prompts through continuous batching, as the static engine takes and gives it."""

from typing import Any

import jax
import numpy as np

from r1jax.engine.continuous import Continuous, Request
from r1jax.engine.generate import Samples
from r1jax.engine.sampling import RequestSampling
from r1jax.kernels.logprob.truncate import FILLER, Sampling


def samples(
  engine: Continuous,
  params: Any,
  prompts_BP: np.ndarray,
  lengths_B: np.ndarray,
  key_B: jax.Array,
  sampling: Sampling,
  limit: int,
) -> Samples:
  """Completes right-padded prompts as `engine.generate` does, on the host; rows in their order."""
  settings = RequestSampling(sampling.temperature, sampling.top_k, sampling.top_p)
  seeds = np.asarray(jax.random.key_data(key_B)).tolist()
  prompts = [tuple(row[:n].tolist()) for row, n in zip(np.asarray(prompts_BP), lengths_B)]
  asked = [Request(p, limit, tuple(s), settings) for p, s in zip(prompts, seeds, strict=True)]
  first = engine.asked
  done = sorted(engine.generate(params, asked), key=lambda c: c.number)
  if len(done) != len(asked) or done[0].number != first:
    raise ValueError('other requests were under way; give this engine to one caller at a time')
  B, P = np.shape(prompts_BP)
  length_B = np.array([len(c.tokens) for c in done], np.int32)

  def rows(of: str, filler: float, *shape: int) -> np.ndarray:
    each = [getattr(c, of) for c in done]
    made = np.full((B, limit, *shape), filler, each[0].dtype)
    for to, x in zip(made, each):
      to[: len(x)] = x
    return made

  def whole(*routes_nLA: np.ndarray) -> np.ndarray:
    n, _, A = routes_nLA[0].shape
    made = np.zeros((n, B, P + limit, A), np.int32)
    for b, r in enumerate(routes_nLA):
      made[:, b, : r.shape[1]] = r
    return made

  return Samples(
    rows('tokens', 0),
    rows('logp', 0.0),
    length_B,
    np.array([c.ended == 'stop' for c in done]),
    jax.tree.map(whole, *(c.routes for c in done)),
    rows('support', FILLER, engine.support) if engine.support else None,
  )
