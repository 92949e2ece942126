"""Rewards by a trained reward model: what R1 adds to its rules where no rule can tell.

    Pairwise     r at the last token of prompt + completion         any size, no zero
    Pointwise    σ(r) there, the chance that the completion is good 0 … 1
    Process      σ(r) at the end of every step                      0 … 1

Weights with the head in them are handed in, so that scoring knows nothing of training
(train/judge.py restores both). Rows of like length share a batch of one of a few shapes
(engine/buckets.py): at most `slots` tokens with their padding, a compiled program for each width.
Cost: one forward pass, 2 · active parameters flops a slot. The order of the rows changes no reward
beyond rounding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.reward_model import Pairwise, RewardModel
from r1jax.core.program import Announce, Program, silent
from r1jax.engine import buckets
from r1jax.model import heads
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs
from r1jax.sharding import place, processes

HEAD = 'reward'
WIDTHS = 33  # from 16 to 2**20 tokens there are that many


def program(cfg: ModelConfig, objective: RewardModel, announce: Announce = silent) -> Program:
  """The compiled (params, tokens_BL, lengths_B) -> reward_BL of a model trained by `objective`."""
  f = functools.partial(rewards, cfg=cfg, objective=objective)
  return Program('rewards of a reward model', f, announce, traces=WIDTHS)


def rewards(
  params: Any,
  tokens_BL: jax.Array,
  lengths_B: jax.Array,
  *,
  cfg: ModelConfig,
  objective: RewardModel,
) -> jax.Array:
  """reward_BL at every token of padded rows; padding is neither seen nor routed."""
  positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
  segments_BL = (positions_BL < lengths_B[:, None]).astype('int32')
  r_BL, _ = heads.scores(params, cfg, HEAD, Inputs(tokens_BL, positions_BL, segments_BL))
  return r_BL if isinstance(objective, Pairwise) else jax.nn.sigmoid(r_BL)


def score(
  program: Program,
  params: Any,
  rows: Sequence[Sequence[int]],
  mesh: jax.sharding.Mesh | None = None,
  slots: int = 8192,
) -> np.ndarray:
  """fp32 rewards of rows of tokens (prompt + completion, see `read`), in the order given."""
  last = [(len(row) - 1,) for row in rows]
  scored = steps(program, params, rows, last, mesh, slots)
  return np.array([r for (r,) in scored], np.float32)


def steps(
  program: Program,
  params: Any,
  rows: Sequence[Sequence[int]],
  ends: Sequence[Sequence[int]],
  mesh: jax.sharding.Mesh | None = None,
  slots: int = 8192,
) -> list[np.ndarray]:
  """fp32 rewards of each row at its places `ends`: the last tokens of the steps."""
  empty = next((i for i, row in enumerate(rows) if not len(row)), None)
  if empty is not None:
    raise ValueError(f'row {empty} has no tokens to score; give the prompt and the completion')
  lengths, shards = [len(row) for row in rows], buckets.shards(mesh)
  scored: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
  for members in buckets.batches(lengths, slots, shards):
    # Always as many rows as fit: one shape a width, whatever is left for the last batch.
    full = buckets.fit(buckets.bucket(max(lengths[i] for i in members)), slots, shards)
    padded = buckets.pad([rows[i] for i in members], 0, shards, least=full)
    made_BL = processes.fetch(program(params, *place.rows(mesh, tuple(padded))))
    for i, r_L in zip(members, made_BL):
      scored[i] = r_L[list(ends[i])]
  return scored


def read(prompt: Sequence[int], completion: Sequence[int], stops: Sequence[int]) -> list[int]:
  """The tokens that a reward model reads: it was trained to judge before the end token."""
  end = next((i for i, token in enumerate(completion) if token in stops), len(completion))
  return [*map(int, prompt), *map(int, completion[:end])]
