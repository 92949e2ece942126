"""A batch of prompts through continuous batching, as the static engine takes and gives it.

    engine = Batches(Paged(), cfg, stops)
    samples = engine(params, prompts_BP, lengths_B, key_B, sampling, limit)

The pages are there while a batch is written and no longer: between two rollouts their memory is
training's (rollouts written ahead lie beside it). A batch may have any number of rows, of which
`slots` run at a time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax.core.errors import UserError
from r1jax.core.program import Announce, silent
from r1jax.engine import buckets
from r1jax.engine.continuous import Continuous
from r1jax.engine.drafts import Drafting
from r1jax.engine.generate import Samples
from r1jax.engine.plan import Config
from r1jax.engine.record import Decode
from r1jax.engine.requests import Completion, Failed, Request
from r1jax.engine.sampling import RequestSampling
from r1jax.kernels.logprob.truncate import FILLER, Sampling
from r1jax.model.cache import Stored
from r1jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Static:
  """Every row of a batch runs until all have stopped; one program for each shape."""


@dataclasses.dataclass(frozen=True)
class Paged:
  """Continuous batching (plan.Config has the words).

  slots: rows that run at a time, rounded up to the mesh. positions: tokens that pages are there
  for, in all slots together, if texts can come to have as many; one text always fits, and where
  pages are few, some wait. stored: 'int8' takes about half of bf16's bytes; None: the activations'
  dtype.
  drafting: speculative drafts, the same tokens in fewer steps.
  """

  slots: int = 256
  page: int = 16
  positions: int = 32_768
  chunk: int = 1024
  burst: int = 16
  patience: float = 0.0
  stored: Stored | None = None
  drafting: Drafting | None = None

  def config(self, longest: int, shards: int = 1) -> Config:
    """Sizes for texts of at most `longest` tokens, on so many parts of a mesh."""
    slots, text = -(-self.slots // shards), -(-longest // self.page)
    pages = min(slots * text, max(text, -(-self.positions // self.page // shards)))
    return Config(
      slots * shards, pages * shards, self.page, longest, self.chunk, self.burst,
      patience=self.patience,
    )  # fmt: skip


class Batches:
  """Continuous batching for one caller at a time: prompts and keys in, samples out, on the host."""

  def __init__(
    self,
    spec: Paged,
    cfg: ModelConfig,
    stops: tuple[int, ...],
    mesh: jax.sharding.Mesh | None = None,
    announce: Announce = silent,
    decode: Decode | None = None,
    routes: bool = True,
  ):
    self.spec, self.cfg, self.stops, self.mesh, self._announce = spec, cfg, stops, mesh, announce
    self._decode, self._routes = decode, routes
    self._engines: dict[tuple[int, int], Continuous] = {}

  def engine(self, longest: int, support: int = 0) -> Continuous:
    """The engine for texts of at most this length: what was asked before never enters its sizes."""
    if (longest, support) not in self._engines:
      self._engines[longest, support] = Continuous(
        self.cfg, self.stops, self.spec.config(longest, buckets.shards(self.mesh)),
        self._announce, self.spec.stored, support, mesh=self.mesh, drafting=self.spec.drafting,
        decode=self._decode, routes=self._routes,
      )  # fmt: skip
    return self._engines[longest, support]

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
    """Completes right-padded prompts; the rows of the result are theirs, in order."""
    support = min(sampling.top_k, self.cfg.vocab) if keep_support else 0
    width = np.shape(prompts_BP)[1]
    settings = RequestSampling(sampling.temperature, sampling.top_k, sampling.top_p)
    seeds = np.asarray(jax.random.key_data(key_B)).tolist()
    prompts = [tuple(row[:n].tolist()) for row, n in zip(np.asarray(prompts_BP), lengths_B)]
    asked = [Request(p, limit, tuple(s), settings) for p, s in zip(prompts, seeds, strict=True)]
    done = self.complete(params, asked, width + limit, support)
    return joined(done, width, limit, support)

  def complete(
    self, params: Any, asked: Sequence[Request], longest: int, support: int = 0
  ) -> list[Completion]:
    """Completions in the order of asking; UserError if one of the requests cannot be served."""
    engine = self.engine(longest, support)
    first, done = engine.asked, {}
    try:
      engine.load(params)
      for c in engine.generate(asked):
        if isinstance(c, Failed):
          raise UserError(c.error)
        done[c.number - first] = c
      engine.release()
    except BaseException:  # an interrupt too: what is under way is nobody's
      del self._engines[longest, support]
      raise
    return [done[b] for b in range(len(asked))]


def joined(done: Sequence[Completion], width: int, limit: int, support: int) -> Samples:
  """Completions as the rows of one batch of prompts of `width` and completions of `limit`."""

  def rows(of: str, filler: float, *shape: int) -> np.ndarray:
    each = [getattr(c, of) for c in done]
    made = np.full((len(done), limit, *shape), filler, each[0].dtype)
    for to, x in zip(made, each):
      to[: len(x)] = x
    return made

  def whole(*routes_nLA: np.ndarray) -> np.ndarray:
    n, _, A = routes_nLA[0].shape
    made = np.zeros((n, len(done), width + limit, A), np.int32)
    for b, r in enumerate(routes_nLA):
      made[:, b, : r.shape[1]] = r
    return made

  return Samples(
    rows('tokens', 0),
    rows('logp', 0.0),
    np.array([len(c.tokens) for c in done], np.int32),
    np.array([c.ended == 'stop' for c in done]),
    jax.tree.map(whole, *(c.routes for c in done)),
    rows('support', FILLER, support) if support else None,
  )
