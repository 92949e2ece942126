"""What a burst has written, in the making: a column for each position that a round reads.

Round r has columns r·L … r·L + L − 1 (L: the newest token and the drafts), with holes where a draft
was not kept. `closed` closes them once for the whole burst, so that no round needs a scatter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.engine.generate import empty_routes
from r1jax.engine.sampling import Drawn
from r1jax.kernels.logprob.truncate import FILLER
from r1jax.model.config import ModelConfig


class Burst(NamedTuple):
  """Of a burst: `count_B` tokens a row, whether the last of them is a stop, and their experts.

  routes are those of the tokens that were read: the one before the first written to the one before
  the last. draft_BK: for the next burst. drafted_B: drafts that there was room for, accepted_B:
  those of them that were written.
  """

  token_BN: jax.Array
  logp_BN: jax.Array
  count_B: jax.Array
  stopped_B: jax.Array
  routes: tuple
  support_BNK: jax.Array | None
  draft_BK: jax.Array | None
  drafted_B: jax.Array
  accepted_B: jax.Array


def blank(cfg: ModelConfig, most: int, support: int, draft_BK: jax.Array) -> Burst:
  """A burst without tokens."""
  B = len(draft_BK)
  zeros_BN, zeros_B = jnp.zeros((B, most)), jnp.zeros(B, jnp.int32)
  support_BNK = jnp.full((B, most, support), FILLER, jnp.int32) if support else None
  return Burst(
    zeros_BN.astype(jnp.int32), zeros_BN, zeros_B, zeros_B > 0, empty_routes(cfg, B, most),
    support_BNK, draft_BK, zeros_B, zeros_B,
  )  # fmt: skip


def written(out: Burst, step: jax.Array, taken_BL: jax.Array, new: Drawn, routes: tuple) -> Burst:
  """The burst with the tokens taken, their numbers and the experts of what they were drawn from."""
  B, L = taken_BL.shape

  def put(to: jax.Array, new: jax.Array, axis: int = 1) -> jax.Array:
    taken = taken_BL.reshape(*(1,) * (axis - 1), B, L, *(1,) * (new.ndim - axis - 1))
    before = jax.lax.dynamic_slice_in_dim(to, step * L, L, axis)
    return jax.lax.dynamic_update_slice_in_dim(to, jnp.where(taken, new, before), step * L, axis)

  by_row = lambda x: x.reshape(B, L, *x.shape[1:])
  support = out.support_BNK
  return out._replace(
    token_BN=put(out.token_BN, by_row(new.token_B)),
    logp_BN=put(out.logp_BN, by_row(new.logp_B)),
    count_B=out.count_B + taken_BL.sum(1),
    routes=jax.tree.map(lambda to, r: put(to, r, 2), out.routes, routes),
    support_BNK=None if support is None else put(support, by_row(new.support_BK)),
  )


def closed(out: Burst, taken_BC: jax.Array, most: int) -> Burst:
  """The burst without the holes of drafts that were not kept, `most` columns wide."""
  place_BC = jnp.where(taken_BC, jnp.cumsum(taken_BC, 1) - 1, -1)
  from_BN = jnp.argmax(place_BC[:, None] == jnp.arange(most)[:, None], 2)
  there_BN = jnp.arange(most) < out.count_B[:, None]

  def close(x: jax.Array, filler: int = 0, axis: int = 1) -> jax.Array:
    lead, tail = (1,) * (axis - 1), (1,) * (x.ndim - axis - 1)
    shape = *lead, *from_BN.shape, *tail
    moved = jnp.take_along_axis(x, from_BN.reshape(shape), axis)
    return jnp.where(there_BN.reshape(shape), moved, filler)

  support = out.support_BNK
  return out._replace(
    token_BN=close(out.token_BN),
    logp_BN=close(out.logp_BN),
    routes=jax.tree.map(lambda r: close(r, 0, 2), out.routes),
    support_BNK=None if support is None else close(support, FILLER),
  )
