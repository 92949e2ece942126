"""Batched generation: prefill, then decode until every row has stopped.

Row b's prompt fills slots 0..len_b−1 of its cache, its completion the slots after, so position and
slot agree and rows of different lengths need no left padding. Prompt padding writes slots that
decoding overwrites before anything sees them. The number drawn at a position depends on the row's
key and the position alone.

Cost of a decode step: 2 · active parameters · B flops, and one pass over the cache. Kept sets take
4·B·T·K bytes (K = top_k) where they are asked for.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.core import prng
from r1jax.engine.sampling import sample, sample_within
from r1jax.kernels.logprob.truncate import FILLER, Sampling
from r1jax.model import cache as caches
from r1jax.model import transformer
from r1jax.model.config import Layer, ModelConfig, MoE, TopK, runs
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Choices


class Samples(NamedTuple):
  """Completions, right-padded.

  `length_B` counts the stop token; `stopped_B` is False where the limit cut it.
  """

  tokens_BT: jax.Array
  logp_BT: jax.Array
  length_B: jax.Array
  stopped_B: jax.Array
  routes: tuple | None  # [run][block]: Choices [n, B, P+T, …] by position, if kept for replay
  support_BTK: jax.Array | None = None  # ids that each token was drawn from, FILLER behind them


class _State(NamedTuple):
  step: jax.Array
  token_B: jax.Array
  done_B: jax.Array
  cache: tuple
  out: Samples


def empty_routes(cfg: ModelConfig, batch: int, length: int) -> tuple:
  """Choices by position, not yet known: [run][block] of [n, B, L, …], None where there are none."""

  def one(layer: Layer, n: int) -> Choices:
    zeros = lambda width: jnp.zeros((n, batch, length, width), jnp.int32)
    pattern = layer.attention.pattern
    return Choices(
      zeros(layer.mlp.active) if isinstance(layer.mlp, MoE) else None,
      zeros(pattern.keys) if isinstance(pattern, TopK) else None,
    )

  return tuple(tuple(one(l, r.repeats) for l in r.period) for r in runs(cfg.layers))


def prefill(
  params: Any, cfg: ModelConfig, prompts_BP: jax.Array, lengths_B: jax.Array, cache: tuple
) -> tuple[jax.Array, tuple, tuple]:
  """Logits after each prompt, the filled cache, and the prompt's choices."""
  positions_BP = jnp.broadcast_to(jnp.arange(prompts_BP.shape[1]), prompts_BP.shape)
  segments_BP = (positions_BP < lengths_B[:, None]).astype(jnp.int32)
  out = Transformer(cfg).apply(
    {'params': params}, Inputs(prompts_BP, positions_BP, segments_BP), cache
  )
  last_BD = jnp.take_along_axis(out.x_BLD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
  return transformer.logits(params, cfg, last_BD), out.cache, out.routes


def decode(
  params: Any,
  cfg: ModelConfig,
  token_B: jax.Array,
  position_B: jax.Array,
  live_B: jax.Array,
  cache: tuple,
) -> tuple[jax.Array, tuple, tuple]:
  """Logits after one more token a row, the cache, its choices; only live rows are routed."""
  inputs = Inputs(token_B[:, None], position_B[:, None], live_B[:, None].astype(jnp.int32))
  out = Transformer(cfg).apply({'params': params}, inputs, cache)
  return transformer.logits(params, cfg, out.x_BLD[:, 0]), out.cache, out.routes


def _write_routes(kept: tuple, new: tuple, position_B: jax.Array) -> tuple:
  rows_B = jnp.arange(position_B.shape[0])
  put = lambda k, r: k.at[:, rows_B, position_B].set(r[:, :, 0], unique_indices=True)
  return jax.tree.map(put, kept, new)


def generate(
  params: Any,
  prompts_BP: jax.Array,
  lengths_B: jax.Array,
  key_B: jax.Array,
  *,
  cfg: ModelConfig,
  sampling: Sampling,
  stops: tuple[int, ...],
  limit: int,
  keep_support: bool = False,
) -> Samples:
  """Completes right-padded prompts by at most `limit` tokens; ends when all rows have stopped.

  keep_support: the samples carry the kept set of each token, which needs sampling.top_k.
  """
  B, P = prompts_BP.shape
  cache = caches.empty(cfg, B, P + limit)
  logits_BV, cache, prompt_routes = prefill(params, cfg, prompts_BP, lengths_B, cache)
  routes = jax.tree.map(
    lambda k, r: k.at[:, :, :P].set(r), empty_routes(cfg, B, P + limit), prompt_routes
  )

  def draw(logits_BV: jax.Array, step: jax.Array, done_B: jax.Array, out: Samples) -> tuple:
    keys = jax.vmap(prng.fold)(key_B, lengths_B + step)
    if keep_support:
      token_B, logp_B, ids_BK = sample_within(logits_BV, keys, sampling)
      ids_BK = jnp.where(done_B[:, None], FILLER, ids_BK)
      out = out._replace(support_BTK=out.support_BTK.at[:, step].set(ids_BK))
    else:
      token_B, logp_B = sample(logits_BV, keys, sampling)
    stop_B = jnp.isin(token_B, jnp.asarray(stops, jnp.int32))
    out = out._replace(
      tokens_BT=out.tokens_BT.at[:, step].set(jnp.where(done_B, out.tokens_BT[:, step], token_B)),
      logp_BT=out.logp_BT.at[:, step].set(jnp.where(done_B, 0.0, logp_B)),
      length_B=out.length_B + ~done_B,
      stopped_B=out.stopped_B | (stop_B & ~done_B),
    )
    return token_B, done_B | stop_B, out

  def step(s: _State) -> _State:
    position_B = lengths_B + s.step - 1
    logits_BV, cache, new = decode(params, cfg, s.token_B, position_B, ~s.done_B, s.cache)
    out = s.out._replace(routes=_write_routes(s.out.routes, new, position_B))
    token_B, done_B, out = draw(logits_BV, s.step, s.done_B, out)
    return _State(s.step + 1, token_B, done_B, cache, out)

  zeros_BT = jnp.zeros((B, limit))
  none_B = jnp.zeros(B, bool)
  K = min(sampling.top_k, logits_BV.shape[-1])
  none_BTK = jnp.full((B, limit, K), FILLER, jnp.int32) if keep_support else None
  blank = Samples(
    zeros_BT.astype(jnp.int32), zeros_BT, none_B.astype(jnp.int32), none_B, routes, none_BTK
  )
  token_B, done_B, out = draw(logits_BV, jnp.int32(0), none_B, blank)
  first = _State(jnp.int32(1), token_B, done_B, cache, out)
  going = lambda s: (s.step < limit) & ~s.done_B.all()
  return jax.lax.while_loop(going, step, first).out
