"""Log-probabilities of given tokens under a model: what evaluation by likelihood asks for.

    logp_t = log softmax(x_t W)[y_{t+1}],    greedy_t = (argmax x_t W = y_{t+1})

Rows of like length share a batch; each (rows, width) bucket is one compiled program (buckets.py).
Logits exist a chunk of tokens at a time (kernels/logprob). Cost: one forward pass, 2 · active
parameters flops a slot, padding included; scores of attention, N · M fp32 numbers a slot where the
implementation makes them, are what `slots` has to bound.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core.program import Announce, Program, silent
from r1jax.engine import buckets
from r1jax.kernels.logprob import Likelihoods, likelihoods
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer
from r1jax.sharding import place, processes


@dataclasses.dataclass(frozen=True)
class Scored:
  """Of each token after the first, given those before it: fp32 [len - 1] and bool [len - 1]."""

  logp: np.ndarray
  greedy: np.ndarray


class Scorer:
  """Scores rows of tokens, at most `slots` tokens with their padding a batch (if a row fits)."""

  def __init__(
    self,
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh | None = None,
    announce: Announce = silent,
    slots: int = 8192,
  ):
    self.cfg, self.mesh, self.slots, self._announce = cfg, mesh, slots, announce
    self._programs: dict[tuple[int, int], Program] = {}

  def __call__(self, params: Any, rows: Sequence[Sequence[int]]) -> list[Scored]:
    """One result a row, in the order given; a row of one token has nothing to score."""
    if not all(len(row) for row in rows):
      raise ValueError('a row to score has no tokens; it needs a first one to condition on')
    lengths = [len(row) - 1 for row in rows]
    scored = [Scored(np.zeros(0, np.float32), np.zeros(0, bool))] * len(rows)
    shards = buckets.shards(self.mesh)
    asked = [i for i, n in enumerate(lengths) if n]
    for batch in buckets.batches([lengths[i] for i in asked], self.slots, shards):
      members = [asked[i] for i in batch]
      tokens_BL, lengths_B = buckets.pad([rows[i][:-1] for i in members], 0, shards)
      targets_BL, _ = buckets.pad([rows[i][1:] for i in members], 0, shards)
      args = place.rows(self.mesh, (tokens_BL, targets_BL, lengths_B))
      made = processes.fetch(self._program(*tokens_BL.shape)(params, *args))
      for i, logp, greedy in zip(members, *made):
        scored[i] = Scored(logp[: lengths[i]], greedy[: lengths[i]])
    return scored

  def _program(self, rows: int, width: int) -> Program:
    if (rows, width) not in self._programs:
      what = f'scoring of {rows} × {width} tokens'
      self._programs[rows, width] = Program(
        what, functools.partial(score, cfg=self.cfg), self._announce
      )
    return self._programs[rows, width]


def score(
  params: Any,
  tokens_BL: jax.Array,
  targets_BL: jax.Array,
  lengths_B: jax.Array,
  *,
  cfg: ModelConfig,
) -> Likelihoods:
  """Likelihoods of the targets, each the token after; padding is neither seen nor routed."""
  positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
  segments_BL = (positions_BL < lengths_B[:, None]).astype(jnp.int32)
  inputs = Inputs(tokens_BL, positions_BL, segments_BL)
  x_BLD = Transformer(cfg).apply({'params': params}, inputs).x_BLD
  return likelihoods(x_BLD, transformer.head(params, cfg), targets_BL)
