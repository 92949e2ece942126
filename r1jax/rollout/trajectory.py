"""Graded trajectories as the arrays of a policy-gradient step.

Position i of a row predicts token i+1, so completion token j of a prompt of n tokens is scored at
position n+j−1: the sampled log-probability, the mask, the experts chosen and the set that it was
drawn from lie there too. The last token is never an input.

Memory, on the host and in the checkpoint of a rollout under way: 4·B·L·K bytes for the kept sets
(512 × 32,768 tokens at K 64: 4.3 GB), 4·B·L·A for the experts of each layer.
"""

from typing import NamedTuple

import jax
import numpy as np

from r1jax.algos.ppo import Targets
from r1jax.data.batch import Batch, Row, batch
from r1jax.kernels.logprob.truncate import FILLER
from r1jax.rollout.collect import Trajectories


class RLBatch(NamedTuple):
  """A batch, and beside each target what the rollout knows; `ref_BL` only where a KL needs it.

  support_BLK: ids of the set that the target was drawn from, to be replayed; FILLER behind them,
  and alone where nothing was drawn.
  """

  batch: Batch
  sampled_BL: jax.Array  # log-probabilities under the distribution that was sampled from
  advantage_B: jax.Array
  truncated_B: jax.Array
  routes: tuple | None  # [run][block]: ids_nBLA to replay
  ref_BL: jax.Array | None = None
  old_BL: jax.Array | None = None
  value_BL: jax.Array | None = None  # PPO's, of before the first update, and what it is trained to
  targets: Targets | None = None
  support_BLK: jax.Array | None = None


def rl_batch(t: Trajectories, advantage_B: np.ndarray, depths: int, replay: bool) -> RLBatch:
  """Arrays of width P + T − 1, one trajectory a row; kept sets where the samples have them."""
  tokens_BT, length_B = np.asarray(t.samples.tokens_BT), np.asarray(t.samples.length_B)
  logp_BT = np.asarray(t.samples.logp_BT)
  width = t.prompts_BP.shape[1] + tokens_BT.shape[1] - 1
  sampled_BL = np.zeros((len(length_B), width), np.float32)
  support_BTK, support_BLK, lines = t.samples.support_BTK, None, []
  if support_BTK is not None:
    support_BLK = np.full((*sampled_BL.shape, support_BTK.shape[-1]), FILLER, np.int32)
  for b, (p, n) in enumerate(zip(t.prompt_lengths_B, length_B)):
    row = [*t.prompts_BP[b, :p].tolist(), *tokens_BT[b, :n].tolist()]
    lines.append([Row(row, [0.0] * p + [1.0] * n)])
    here = slice(p - 1, p - 1 + n)
    sampled_BL[b, here] = logp_BT[b, :n]
    if support_BTK is not None:
      support_BLK[b, here] = support_BTK[b, :n]
  routes = jax.tree.map(lambda r: r[:, :, :width], t.samples.routes) if replay else None
  truncated_B = ~np.asarray(t.samples.stopped_B)
  made = batch(lines, width, depths)
  return RLBatch(made, sampled_BL, advantage_B, truncated_B, routes, support_BLK=support_BLK)


def rows(b: RLBatch, index: np.ndarray) -> RLBatch:
  """The rows of a minibatch. Advantages were taken from whole groups before."""
  routes = None if b.routes is None else jax.tree.map(lambda r: r[:, index], b.routes)
  return jax.tree.map(lambda x: x[index], b._replace(routes=None))._replace(routes=routes)
