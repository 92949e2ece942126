"""The engine's two compiled steps over paged memory: fill chunks of prompts, decode a burst.

    prefill   tokens [B, L] of some sequences, each from its own position on, into their pages;
              then one token a row behind the last of them
    decode    up to `steps` tokens for each row that lives, one program whatever joins or leaves

Rows are independent: what a row draws depends on its key and the position alone, so that neither
slot nor neighbours nor a preemption in between change a sequence. `eager` ends a burst when a row
has ended, so that its slot does not stay empty while others wait.

Cost of a decode step: 2 · active parameters · B flops, and a pass over T·S positions a row and
layer, T the widest table. A burst of N tokens asks the host once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.core import prng
from r1jax.engine.generate import empty_routes
from r1jax.engine.sampling import Controls, Drawn, Kinds, sample_rows
from r1jax.kernels.logprob.truncate import FILLER
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer


class Rows(NamedTuple):
  """What both steps are told of a row; seeds are key data, a table has −1 where it has no page."""

  table_BT: jax.Array
  seed_BW: jax.Array
  controls: Controls


class Filled(NamedTuple):
  """Of a chunk: the token drawn behind it, and the experts of its tokens."""

  drawn: Drawn
  routes: tuple  # [run][block]: [n, B, L, A], None where dense


class Burst(NamedTuple):
  """Of a burst: `count_B` tokens a row, whether the last of them is a stop, and their experts.

  routes are those of the tokens that were read: the one before the first written to the one before
  the last.
  """

  token_BN: jax.Array
  logp_BN: jax.Array
  count_B: jax.Array
  stopped_B: jax.Array
  routes: tuple
  support_BNK: jax.Array | None


def prefill(
  params: Any,
  cache: tuple,
  tokens_BL: jax.Array,
  start_B: jax.Array,
  length_B: jax.Array,
  rows: Rows,
  *,
  cfg: ModelConfig,
  kinds: Kinds,
) -> tuple[tuple, Filled]:
  """Computes tokens start … start+length−1 of each row; a row of length 0 is padding."""
  at_L = jnp.arange(tokens_BL.shape[1])
  positions_BL = start_B[:, None] + at_L
  segments_BL = (at_L < length_B[:, None]).astype(jnp.int32)
  inputs = Inputs(tokens_BL, positions_BL, segments_BL, table_BT=rows.table_BT)
  out = Transformer(cfg).apply({'params': params}, inputs, cache)
  last_B = jnp.maximum(length_B - 1, 0)
  x_BD = jnp.take_along_axis(out.x_BLD, last_B[:, None, None], axis=1)[:, 0]
  drawn = draw(params, x_BD, start_B + length_B, rows, cfg, kinds)
  return out.cache, Filled(drawn, out.routes)


def decode(
  params: Any,
  cache: tuple,
  token_B: jax.Array,
  position_B: jax.Array,
  left_B: jax.Array,
  rows: Rows,
  steps: jax.Array,
  eager: jax.Array,
  *,
  cfg: ModelConfig,
  kinds: Kinds,
  stops: tuple[int, ...],
  most: int,
) -> tuple[tuple, Burst]:
  """Writes up to min(steps, left) tokens behind `token`, which stands at `position`.

  left 0: the row does not live. most: room for tokens, steps ≤ most.
  """
  B = len(token_B)

  def one(carry: tuple) -> tuple:
    step, token_B, live_B, cache, out = carry
    here_B = position_B + step
    inputs = Inputs(
      token_B[:, None], here_B[:, None], live_B[:, None].astype(jnp.int32), table_BT=rows.table_BT
    )
    made = Transformer(cfg).apply({'params': params}, inputs, cache)
    new = draw(params, made.x_BLD[:, 0], here_B + 1, rows, cfg, kinds)
    stop_B = live_B & jnp.isin(new.token_B, jnp.asarray(stops, jnp.int32))
    out = _written(out, step, live_B, stop_B, new, made.routes)
    live_B = live_B & ~stop_B & (step + 1 < left_B)
    return step + 1, new.token_B, live_B, made.cache, out

  started_B = left_B > 0

  def going(carry: tuple) -> jax.Array:
    step, _, live_B, *_ = carry
    ended = (started_B & ~live_B).any()
    return (step < steps) & live_B.any() & ~(eager & ended)

  K = min(kinds.support, cfg.vocab)
  blank = Burst(
    jnp.zeros((B, most), jnp.int32),
    jnp.zeros((B, most)),
    jnp.zeros(B, jnp.int32),
    jnp.zeros(B, bool),
    empty_routes(cfg, B, most),
    jnp.full((B, most, K), FILLER, jnp.int32) if K else None,
  )
  first = jnp.int32(0), token_B, started_B, cache, blank
  *_, cache, out = jax.lax.while_loop(going, one, first)
  return cache, out


def _written(
  out: Burst, step: jax.Array, live_B: jax.Array, stop_B: jax.Array, new: Drawn, routes: tuple
) -> Burst:
  """The burst with one more token for each row that lives."""
  put = lambda to_BN, x_B: to_BN.at[:, step].set(jnp.where(live_B, x_B, to_BN[:, step]))
  support = out.support_BNK
  return Burst(
    put(out.token_BN, new.token_B),
    put(out.logp_BN, new.logp_B),
    out.count_B + live_B,
    out.stopped_B | stop_B,
    jax.tree.map(lambda to, r: to.at[:, :, step].set(r[:, :, 0]), out.routes, routes),
    None if support is None else support.at[:, step].set(new.support_BK),
  )


def draw(
  params: Any, x_BD: jax.Array, position_B: jax.Array, rows: Rows, cfg: ModelConfig, kinds: Kinds
) -> Drawn:
  """The token at `position` from the hidden state before it."""
  logits_BV = transformer.logits(params, cfg, x_BD)
  keys_B = jax.vmap(prng.fold)(jax.random.wrap_key_data(rows.seed_BW), position_B)
  return sample_rows(logits_BV, keys_B, rows.controls, kinds)
