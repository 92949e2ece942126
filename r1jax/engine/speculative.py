"""Speculative decoding: cheap drafts of K tokens, checked by one forward pass over K + 1.

Two ways to accept, both exactly the target's distribution p, however poor the drafts:

    agree    x_j ~ p_j by plain sampling's own numbers; a draft stays while it is what was drawn
    accept   the draft came from q_j: it stays with min(1, p_j/q_j), and at the first that does not
             stands a token from max(p_j − q_j, 0)

(`accept`: Leviathan et al., arXiv 2211.17192; Chen et al., 2302.01318.) Behind K kept drafts
follows one token more from p. `agree` needs no q and gives the tokens of plain sampling, greedy
too: a sample does not depend on who drafted. Drafts for it are best drawn by those same numbers
(`coupled`). `accept` keeps Σ min(p, q) of the drafts, the most there is, and wants K·V numbers a
row. Simulated, q being p's logits (4,000 normal ones, deviation σ) with noise of deviation ε:

    σ, ε (entropy of p, nats)     2, 0.3 (6.3)   4, 0.5 (3.0)   4, 1 (3.0)   6, 1 (1.6)
    accept, drafts from q             0.88           0.83          0.68         0.75
    agree, coupled drafts             0.44           0.60          0.44         0.62
    agree, q's most likely token      0.06           0.34          0.29         0.50

Drafts are those of the model's prediction modules (model/mtp.py), each with a cache of its own:
module d at position i reads h_i and the token d + 1 ahead, and drafts the one behind it. Drafts
beyond the modules come from the last one, fed its own output a position on, as servers of V3 do.

Cost of a draft: a layer and a head for one position a row, and over the newly verified ones a layer
a module. Checking: 2 · active parameters · (K + 1) · B flops, one pass over weights and cache.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.core import prng
from r1jax.core.qarray import rows
from r1jax.engine.sampling import draw, sample
from r1jax.kernels.logprob import picked
from r1jax.kernels.logprob.truncate import Sampling, truncate
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.keys import listed
from r1jax.model.mtp import PredictionModule
from r1jax.model.types import Place
from r1jax.sharding.rules import constrain

# Streams beside the plain one of a position; 0 and 1 count that one's own two numbers.
ACCEPT, DRAFT = 2, 3


class Verdict(NamedTuple):
  """Of L = K + 1 tokens the first `accepted_B` are drafts, one follows, the rest is void.

  logp_BL is the target's.
  """

  accepted_B: jax.Array
  tokens_BL: jax.Array
  logp_BL: jax.Array


class Drafts(NamedTuple):
  """Drafted tokens, the logits that they were drawn from (None: point masses), the caches."""

  tokens_BK: jax.Array
  z_BKV: jax.Array | None
  cache: tuple


Choose = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


def row_keys(key_B: jax.Array, position_BL: jax.Array, *stream: int) -> jax.Array:
  """Keys_BL of text positions, by row and position alone."""
  one = lambda key, position: prng.fold(key, position, *stream)
  return jax.vmap(jax.vmap(one, (None, 0)))(key_B, position_BL)


def leading(kept_BK: jax.Array) -> jax.Array:
  """How many are True before the first that is not, a row."""
  return jnp.cumprod(kept_BK.astype(jnp.int32), 1).sum(1)


def agree(draft_BK: jax.Array, own_BL: jax.Array) -> jax.Array:
  """Accepted_B: how many drafts are what the target drew (greedy: its argmax); −1 never is."""
  return leading(draft_BK == own_BL[:, : draft_BK.shape[1]])


def drawn_anew(
  draft_BK: jax.Array,
  logits_BLV: jax.Array,
  key_B: jax.Array,
  position_B: jax.Array,
  sampling: Sampling,
) -> Verdict:
  """Keeps drafts as long as they agree with the tokens of plain sampling."""
  B, L, V = logits_BLV.shape
  keys_BL = row_keys(key_B, position_B[:, None] + jnp.arange(L))
  own, logp = sample(logits_BLV.reshape(B * L, V), keys_BL.reshape(B * L), sampling)
  own_BL = own.reshape(B, L)
  return Verdict(agree(draft_BK, own_BL), own_BL, logp.reshape(B, L))


def accept(
  draft_BK: jax.Array,
  q_BKV: jax.Array,
  z_BLV: jax.Array,
  key_B: jax.Array,
  position_B: jax.Array,
) -> Verdict:
  """Keeps or replaces drafts that were drawn from softmax(q) where softmax(z) is the target.

  Both are tempered and truncated logits, −inf outside what is kept. position_B: the text position
  of the first draft. A draft of −1 is none: what stands there comes from the target.
  """
  chosen_BK1, L = jnp.maximum(draft_BK, 0)[..., None], z_BLV.shape[1]
  real_BK = draft_BK >= 0
  position_BL = position_B[:, None] + jnp.arange(L)
  p_BLV = jax.nn.softmax(z_BLV, -1)
  q_BKV = jnp.where(real_BK[..., None], jax.nn.softmax(q_BKV, -1), 0.0)
  p_BK, q_BK = (jnp.take_along_axis(x, chosen_BK1, 2)[..., 0] for x in (p_BLV[:, :-1], q_BKV))
  u_BK = jax.vmap(jax.vmap(jax.random.uniform))(row_keys(key_B, position_BL[:, :-1], ACCEPT))
  accepted_B = leading(real_BK & (u_BK * q_BK < p_BK))

  q_BLV = jnp.pad(q_BKV, ((0, 0), (0, 1), (0, 0)))  # behind the last draft the residual is p
  p_BV, q_BV, key_B = (
    jax.vmap(lambda x, i: x[i])(x, accepted_B) for x in (p_BLV, q_BLV, row_keys(key_B, position_BL))
  )
  rest_BV = jnp.maximum(p_BV - q_BV, 0)
  # Only by rounding is nothing left where a draft was refused.
  rest_BV = jnp.where(rest_BV.any(-1, keepdims=True), rest_BV, p_BV)
  last_B1 = draw(jnp.log(rest_BV), key_B)[:, None]
  drafts_BL = jnp.pad(draft_BK, ((0, 0), (0, 1)))
  tokens_BL = jnp.where(jnp.arange(L) < accepted_B[:, None], drafts_BL, last_B1)
  return Verdict(accepted_B, tokens_BL, jax.vmap(picked)(z_BLV, tokens_BL).logp)


def coupled(key_B: jax.Array, sampling: Sampling) -> Choose:
  """Drafts drawn by the numbers that plain sampling takes at their positions, for `agree`."""

  def choose(logits_BV: jax.Array, position_B: jax.Array) -> tuple[jax.Array, None]:
    return sample(logits_BV, row_keys(key_B, position_B[:, None])[:, 0], sampling)[0], None

  return choose


def drawn(key_B: jax.Array, sampling: Sampling) -> Choose:
  """Drafts drawn by numbers of their own, for `accept`; temperature 0 has no q."""

  def choose(logits_BV: jax.Array, position_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    z_BV = truncate(logits_BV, sampling)
    return draw(z_BV, row_keys(key_B, position_B[:, None], DRAFT)[:, 0]), z_BV

  return choose


def module_caches(cfg: ModelConfig, make: Callable[[ModelConfig], tuple]) -> tuple:
  """A cache a prediction module, each of them as `make` makes it for a model of one layer."""
  return tuple(make(dataclasses.replace(cfg, layers=(layer,), mtp=()))[0][0] for layer in cfg.mtp)


def hidden(out: transformer.Output, cfg: ModelConfig) -> jax.Array:
  """What the first prediction module reads of the main model."""
  if cfg.mtp_input == 'normed':
    return out.x_BLD
  return transformer.stream(out, cfg, len(cfg.layers) - 1)


def _module(
  params: Any,
  cfg: ModelConfig,
  d: int,
  h_BLD: jax.Array,
  ahead_BL: jax.Array,
  place: Place,
  cache: tuple,
) -> tuple[jax.Array, jax.Array, tuple]:
  """Of prediction module d: h for what comes after it, its output for the head, its cache."""
  e_BLD = constrain(rows(params['embedding'], ahead_BL).astype(cfg.dtype), 'batch', 'length', None)
  module, given = PredictionModule(cfg.mtp[d]), {'params': params[f'mtp{d}']}
  place = place._replace(listed_BL=listed(cfg, ahead_BL))
  h_BLD, y_BLD, out = module.apply(given, h_BLD, e_BLD, place, cache)
  return y_BLD if cfg.mtp_input == 'normed' else h_BLD, y_BLD, out.cache


def draft(
  params: Any,
  cfg: ModelConfig,
  h_BLD: jax.Array,
  ahead_BL: jax.Array,
  place: Place,
  cache: tuple,
  steps: int,
  choose: Choose,
) -> Drafts:
  """Takes in newly verified positions and drafts `steps` tokens behind each row's last live one.

  h_BLD: `hidden` at positions whose next tokens, ahead_BL, are known; place says which positions
  and, by segments 1, which are live; a row's live ones follow each other. choose(logits_BV,
  position_B) gives a token for a text position. Memory of what was drafted but not accepted is
  written over as positions repeat; with more modules than one, deeper ones keep of a refused draft
  the entry of its round's last position: that costs drafts, not exactness.
  """
  if not cfg.mtp:
    raise ValueError('drafts need prediction modules: give the model config mtp=(Layer(…),)')
  L, cache, tokens, scores = h_BLD.shape[1], list(cache), [], []
  last_B1 = jnp.where(place.segments_BL > 0, jnp.arange(L), 0).max(1, keepdims=True)
  place = place._replace(layer=jnp.int32(0))
  position_B = jnp.take_along_axis(place.positions_BL, last_B1, 1)[:, 0]
  live_B1 = (place.segments_BL > 0).any(1, keepdims=True).astype(jnp.int32)
  for step in range(steps):
    d = min(step, len(cfg.mtp) - 1)
    h_BLD, y_BLD, cache[d] = _module(params, cfg, d, h_BLD, ahead_BL, place, cache[d])
    y_BD = jnp.take_along_axis(y_BLD, last_B1[..., None], 1)[:, 0]
    token_B, z_BV = choose(transformer.logits(params, cfg, y_BD), position_B + 2 + step)
    tokens.append(token_B)
    scores.append(z_BV)
    if step + 1 < len(cfg.mtp):  # the next module over the same positions, a token further ahead
      at_last = jnp.arange(L) == last_B1
      ahead_BL = jnp.where(at_last, token_B[:, None], jnp.roll(ahead_BL, -1, 1))
    else:  # the last one again: its own output stands for h at the next position
      h_BLD = jnp.take_along_axis(h_BLD, last_B1[..., None], 1)
      here_B1 = jnp.take_along_axis(place.positions_BL, last_B1, 1)
      ahead_BL, last_B1 = token_B[:, None], jnp.zeros_like(last_B1)
      place = place._replace(positions_BL=here_B1 + 1, segments_BL=live_B1)
  z_BKV = None if scores[0] is None else jnp.stack(scores, 1)
  return Drafts(jnp.stack(tokens, 1), z_BKV, tuple(cache))
