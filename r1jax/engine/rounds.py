"""Generation in rounds of drafted tokens: the whole of speculative decoding as one program.

A round checks each row's K drafts by one forward pass over K + 1 tokens, writes those that hold and
one more, and drafts anew (engine/speculative.py). Rows advance each by its own count; a row that
has stopped, or reached the limit, waits for the others. Cache slots of refused drafts are written
over before anything sees them, as those of prompt padding are. A dense cache of P + T + K slots.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.engine.generate import Samples, empty_routes
from r1jax.engine.speculative import (
  Choose,
  Drafts,
  Verdict,
  accept,
  coupled,
  draft,
  drawn,
  drawn_anew,
  hidden,
  module_caches,
)
from r1jax.kernels.logprob.truncate import Sampling, truncate
from r1jax.model import cache as caches
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place

Choice = Literal['coupled', 'drawn']


class Speculated(NamedTuple):
  """Completions (without kept sets), and of the tokens drafted for each row those it kept."""

  samples: Samples
  accepted_B: jax.Array
  drafted_B: jax.Array


class _Task(NamedTuple):
  """What the compiler knows."""

  cfg: ModelConfig
  sampling: Sampling
  stops: tuple[int, ...]
  limit: int
  drafts: int
  choice: Choice

  def choose(self, key_B: jax.Array) -> Choose:
    """How drafts are made."""
    greedy = self.sampling.temperature == 0  # an argmax has no density to accept by
    return (coupled if greedy or self.choice == 'coupled' else drawn)(key_B, self.sampling)


class _State(NamedTuple):
  made: Speculated
  cache: tuple
  drafts: Drafts


def emit(s: Samples, verdict: Verdict, stops: tuple[int, ...]) -> tuple[Samples, jax.Array]:
  """Writes a round's tokens, up to a stop token or the limit; says how many to each row."""
  T, at_L = s.tokens_BT.shape[1], jnp.arange(verdict.tokens_BL.shape[1])
  stop_BL = jnp.isin(verdict.tokens_BL, jnp.asarray(stops, jnp.int32))
  to_BL = s.length_B[:, None] + at_L
  taken_BL = (at_L <= verdict.accepted_B[:, None]) & (to_BL < T) & ~s.stopped_B[:, None]
  taken_BL &= jnp.cumsum(stop_BL, 1) - stop_BL == 0
  rows_B1 = jnp.arange(len(to_BL))[:, None]
  put = lambda x, new: x.at[rows_B1, jnp.where(taken_BL, to_BL, T)].set(new, mode='drop')
  n_B = taken_BL.sum(1)
  return s._replace(
    tokens_BT=put(s.tokens_BT, verdict.tokens_BL),
    logp_BT=put(s.logp_BT, verdict.logp_BL),
    length_B=s.length_B + n_B,
    stopped_B=s.stopped_B | (stop_BL & taken_BL).any(1),
  ), n_B


def _write_routes(kept: tuple, new: tuple, place: Place) -> tuple:
  rows_B1 = jnp.arange(len(place.positions_BL))[:, None]

  def put(k: jax.Array, r: jax.Array) -> jax.Array:
    to_BL = jnp.where(place.segments_BL > 0, place.positions_BL, k.shape[2])
    return k.at[:, rows_B1, to_BL].set(r, mode='drop')

  return jax.tree.map(put, kept, new)


def _forward(
  params: Any, cfg: ModelConfig, tokens_BL: jax.Array, place: Place, cache: tuple
) -> transformer.Output:
  inputs = Inputs(tokens_BL, place.positions_BL, place.segments_BL)
  return Transformer(cfg).apply({'params': params}, inputs, cache)


def _begin(
  t: _Task, params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, key_B: jax.Array
) -> _State:
  """Reads the prompts, draws a first token, drafts those behind it."""
  B, P = prompts_BP.shape
  empty = lambda cfg: caches.empty(cfg, B, P + t.limit + t.drafts)
  positions_BP = jnp.broadcast_to(jnp.arange(P), (B, P))
  place = Place(positions_BP, (positions_BP < lengths_B[:, None]).astype(jnp.int32))
  out = _forward(params, t.cfg, prompts_BP, place, empty(t.cfg))
  last_BD = jnp.take_along_axis(out.x_BLD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
  logits_BLV = transformer.logits(params, t.cfg, last_BD)[:, None]
  none_BK = jnp.zeros((B, 0), jnp.int32)
  verdict = drawn_anew(none_BK, logits_BLV, key_B, lengths_B, t.sampling)

  zeros_BT, zeros_B = jnp.zeros((B, t.limit)), jnp.zeros(B, jnp.int32)
  routes = _write_routes(empty_routes(t.cfg, B, P + t.limit), out.routes, place)
  blank = Samples(zeros_BT.astype(jnp.int32), zeros_BT, zeros_B, zeros_B > 0, routes)
  samples, _ = emit(blank, verdict, t.stops)
  at_last = positions_BP == lengths_B[:, None] - 1
  ahead_BP = jnp.where(at_last, verdict.tokens_BL, jnp.roll(prompts_BP, -1, 1))
  drafts = draft(
    params, t.cfg, hidden(out, t.cfg), ahead_BP, place, module_caches(t.cfg, empty), t.drafts,
    t.choose(key_B),
  )  # fmt: skip
  return _State(Speculated(samples, zeros_B, zeros_B), out.cache, drafts)


def _round(t: _Task, params: Any, lengths_B: jax.Array, key_B: jax.Array, s: _State) -> _State:
  """Checks the drafts, writes what holds and one token more, drafts anew."""
  samples, (draft_BK, q_BKV, modules) = s.made.samples, s.drafts
  (B, K), at_L = draft_BK.shape, jnp.arange(t.drafts + 1)
  newest_B1 = jnp.take_along_axis(samples.tokens_BT, samples.length_B[:, None] - 1, 1)
  tokens_BL = jnp.concatenate([newest_B1, draft_BK], 1)
  position_B = lengths_B + samples.length_B - 1
  live_BL = jnp.broadcast_to(_going(samples)[:, None], tokens_BL.shape)
  place = Place(position_B[:, None] + at_L, live_BL.astype(jnp.int32))
  out = _forward(params, t.cfg, tokens_BL, place, s.cache)
  x_TD = out.x_BLD.reshape(B * (K + 1), -1)
  logits_BLV = transformer.logits(params, t.cfg, x_TD).reshape(B, K + 1, -1)
  if q_BKV is None:
    verdict = drawn_anew(draft_BK, logits_BLV, key_B, position_B + 1, t.sampling)
  else:
    z_BLV = jax.vmap(lambda z_LV: truncate(z_LV, t.sampling))(logits_BLV)
    verdict = accept(draft_BK, q_BKV, z_BLV, key_B, position_B + 1)

  samples, n_B = emit(samples, verdict, t.stops)
  place = place._replace(segments_BL=(at_L < n_B[:, None]).astype(jnp.int32))
  samples = samples._replace(routes=_write_routes(samples.routes, out.routes, place))
  drafts = draft(
    params, t.cfg, hidden(out, t.cfg), verdict.tokens_BL, place, modules, K, t.choose(key_B)
  )
  accepted_B = s.made.accepted_B + jnp.minimum(verdict.accepted_B, n_B)
  drafted_B = s.made.drafted_B + jnp.where(n_B > 0, K, 0)
  return _State(Speculated(samples, accepted_B, drafted_B), out.cache, drafts)


def _going(s: Samples) -> jax.Array:
  return ~s.stopped_B & (s.length_B < s.tokens_BT.shape[1])


def generate_speculative(
  params: Any,
  prompts_BP: jax.Array,
  lengths_B: jax.Array,
  key_B: jax.Array,
  *,
  cfg: ModelConfig,
  sampling: Sampling,
  stops: tuple[int, ...],
  limit: int,
  drafts: int = 1,
  choice: Choice = 'coupled',
) -> Speculated:
  """`generate` in rounds of `drafts` drafted tokens; rows advance each by its own count.

  choice: 'coupled' gives the tokens that `generate` does by the same keys; 'drawn' keeps more
  drafts and gives others of the same distribution.
  """
  if drafts < 1:
    raise ValueError(f'drafts={drafts}; expected 1 or more (without drafts: generate)')
  task = _Task(cfg, sampling, tuple(stops), limit, drafts, choice)
  first = _begin(task, params, prompts_BP, lengths_B, key_B)
  going = lambda s: _going(s.made.samples).any()
  step = lambda s: _round(task, params, lengths_B, key_B, s)
  return jax.lax.while_loop(going, step, first).made
