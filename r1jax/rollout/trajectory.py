"""Graded trajectories as the arrays of a policy-gradient step.

Position i of a row predicts token i+1, so completion token j of a prompt of n tokens is scored at
position n+j−1: the sampled log-probability, the mask and the experts chosen lie there too. The last
token is never an input.
"""

from typing import NamedTuple

import jax
import numpy as np

from r1jax.data.batch import Batch, Row, batch
from r1jax.rollout.collect import Trajectories


class RLBatch(NamedTuple):
  """A batch, and beside each target what the rollout knows; `ref_BL` only where a KL needs it."""

  batch: Batch
  sampled_BL: jax.Array  # log-probabilities under the distribution that was sampled from
  advantage_B: jax.Array
  truncated_B: jax.Array
  routes: tuple | None  # [run][block]: ids_nBLA to replay
  ref_BL: jax.Array | None = None
  old_BL: jax.Array | None = None


def rl_batch(t: Trajectories, advantage_B: np.ndarray, depths: int, replay: bool) -> RLBatch:
  """Arrays of width P + T − 1, one trajectory a row."""
  tokens_BT, length_B = np.asarray(t.samples.tokens_BT), np.asarray(t.samples.length_B)
  logp_BT = np.asarray(t.samples.logp_BT)
  width = t.prompts_BP.shape[1] + tokens_BT.shape[1] - 1
  sampled_BL = np.zeros((len(length_B), width), np.float32)
  lines = []
  for b, (p, n) in enumerate(zip(t.prompt_lengths_B, length_B)):
    row = [*t.prompts_BP[b, :p].tolist(), *tokens_BT[b, :n].tolist()]
    lines.append([Row(row, [0.0] * p + [1.0] * n)])
    sampled_BL[b, p - 1 : p - 1 + n] = logp_BT[b, :n]
  routes = jax.tree.map(lambda r: r[:, :, :width], t.samples.routes) if replay else None
  truncated_B = ~np.asarray(t.samples.stopped_B)
  return RLBatch(batch(lines, width, depths), sampled_BL, advantage_B, truncated_B, routes)


def rows(b: RLBatch, index: np.ndarray) -> RLBatch:
  """The rows of a minibatch. Advantages were taken from whole groups before."""
  routes = None if b.routes is None else jax.tree.map(lambda r: r[:, index], b.routes)
  return jax.tree.map(lambda x: x[index], b._replace(routes=None))._replace(routes=routes)
