"""The engine's two compiled steps over paged memory: fill chunks of prompts, decode a burst.

    prefill   tokens [B, L] of some sequences, each from its own position on, into their pages;
              then one token a row behind the last of them, and the first drafts
    decode    up to `steps` tokens for each row that lives, one program whatever joins or leaves,
              in rounds: read [newest token, K drafts], draw a token behind each of the L = K + 1,
              take them as long as the drafts before them are what was drawn, draft anew

Rows are independent: what a row draws depends on its key and the position alone, so that neither
slot nor neighbours nor a preemption in between change a sequence, and no draft does: behind equal
tokens stand equal numbers, and what follows another token is not taken. `patience` ends a burst
when slots of rows that have ended stood empty for that many rounds, all of them together.

Cost of a round: 2 · active parameters · B · L flops, a pass over T·S positions a row and layer, T
the widest table, and the drafts (engine/drafts.py). Penalties pass over B·L·V counts. A burst of N
tokens asks the host once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.engine import burst, drafts
from r1jax.engine.burst import Burst
from r1jax.engine.drafts import Drafting, NGram
from r1jax.engine.sampling import (
  Controls,
  Counts,
  Drawn,
  Kinds,
  count,
  count_ahead,
  sample_rows,
  tally,
)
from r1jax.engine.speculative import Choose, agree, row_keys
from r1jax.model import transformer
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import Place
from r1jax.sharding import rules


class History(NamedTuple):
  """Each row's text, the newest token included; needed for penalties and NGram alone.

  M is at least the longest text after the step; prompt_B: how many of its tokens are prompt.
  """

  tokens_BM: jax.Array
  prompt_B: jax.Array


class Rows(NamedTuple):
  """What both steps are told of a row; seeds are key data, a table has −1 where it has no page.

  cap_B: tokens of a burst behind which a row pauses, to be looked at; it has not ended.
  """

  table_BT: jax.Array
  seed_BW: jax.Array
  controls: Controls
  history: History | None = None
  cap_B: jax.Array | None = None


class Memory(NamedTuple):
  """The model's pages and, for drafts by Modules, theirs; one table serves both."""

  cache: tuple
  modules: tuple = ()


class Filled(NamedTuple):
  """Of a chunk: the token drawn behind it, the experts of its tokens, drafts behind that token."""

  drawn: Drawn
  routes: tuple  # [run][block]: [n, B, L, A], None where dense
  draft_BK: jax.Array | None


class _Task(NamedTuple):
  """What a burst does not change."""

  params: Any
  cfg: ModelConfig
  kinds: Kinds
  stops: tuple[int, ...]
  drafting: Drafting | None
  rows: Rows
  position_B: jax.Array
  left_B: jax.Array
  cap_B: jax.Array
  room_B: jax.Array

  def ended(self, out: Burst) -> jax.Array:
    """Which rows need no more rounds in any burst."""
    return out.stopped_B | (out.count_B >= self.left_B)

  @property
  def key_B(self) -> jax.Array:
    """Each row's key."""
    return jax.random.wrap_key_data(self.rows.seed_BW)

  def choose(self, counts: Counts | None) -> Choose:
    """How modules draft."""
    return drafts.choose_rows(self.key_B, self.rows.controls, self.kinds, counts)


class _State(NamedTuple):
  """Of a burst under way; out has the drafts to check next, and a column a position read.

  taken_BC: which columns were taken, with drafts.
  """

  round: jax.Array
  idle: jax.Array
  token_B: jax.Array
  live_B: jax.Array
  memory: Memory
  counts: Counts | None
  text_BM: jax.Array | None
  taken_BC: jax.Array | None
  out: Burst


def prefill(
  params: Any,
  memory: Memory,
  tokens_BL: jax.Array,
  next_B: jax.Array,
  start_B: jax.Array,
  length_B: jax.Array,
  rows: Rows,
  *,
  cfg: ModelConfig,
  kinds: Kinds,
  drafting: Drafting | None = None,
) -> tuple[Memory, Filled]:
  """Computes tokens start … start+length−1 of each row; a row of length 0 is padding.

  next_B: the token behind the chunk where the text has it already; −1: the one drawn here. Second
  and later modules need tokens beyond that one at a chunk's end and take their drafts for them.
  """
  text_BM = _text(rows, kinds, drafting)
  at_L, end_B = jnp.arange(tokens_BL.shape[1]), start_B + length_B
  live_BL = at_L < length_B[:, None]
  place = Place(start_B[:, None] + at_L, live_BL.astype(jnp.int32), table_BT=rows.table_BT)
  out = _forward(params, cfg, tokens_BL, place, memory.cache)
  last_B = jnp.maximum(length_B - 1, 0)
  x_B1D = jnp.take_along_axis(out.x_BLD, last_B[:, None, None], axis=1)
  counts = tally(*rows.history, end_B, cfg.vocab) if kinds.penalties else None
  drawn = _draw(params, cfg, x_B1D, end_B, rows, kinds, counts)

  follows_B = jnp.where(next_B < 0, drawn.token_B, next_B)
  ahead_BL = jnp.where(at_L == last_B[:, None], follows_B[:, None], jnp.roll(tokens_BL, -1, 1))
  if counts is not None:
    counts = count(counts, follows_B, length_B > 0)
  if text_BM is not None:
    text_BM = text_BM.at[jnp.arange(len(end_B)), end_B].set(follows_B, mode='drop')
  key_B = jax.random.wrap_key_data(rows.seed_BW)
  choose = drafts.choose_rows(key_B, rows.controls, kinds, counts)
  draft_BK, modules = drafts.propose(
    drafting, params, cfg, out, ahead_BL, place, memory.modules, choose, text_BM, end_B + 1
  )
  return Memory(out.cache, modules), Filled(drawn, out.routes, draft_BK)


def decode(
  params: Any,
  memory: Memory,
  token_B: jax.Array,
  draft_BK: jax.Array | None,
  position_B: jax.Array,
  left_B: jax.Array,
  rows: Rows,
  steps: jax.Array,
  patience: jax.Array,
  *,
  cfg: ModelConfig,
  kinds: Kinds,
  stops: tuple[int, ...],
  most: int,
  drafting: Drafting | None = None,
) -> tuple[Memory, Burst]:
  """Writes up to min(steps, left) tokens behind `token`, which stands at `position`.

  left: what a row may still write, 0: it does not live. most: room for tokens, steps ≤ most. The
  burst ends when a row that lives has `steps` tokens, when none lives, or when one has ended and
  the rounds that ended rows have waited, summed over them, reach `patience`.
  """
  B, K = len(token_B), drafts.count(drafting)
  draft_BK = jnp.zeros((B, 0), jnp.int32) if draft_BK is None else draft_BK
  if draft_BK.shape != (B, K):
    raise ValueError(f'draft_BK is {draft_BK.shape}, but {drafting} wants {(B, K)}; −1 is no draft')
  text_BM, started_B = _text(rows, kinds, drafting), left_B > 0
  cap_B = left_B if rows.cap_B is None else jnp.minimum(left_B, rows.cap_B)
  room_B = jnp.minimum(cap_B, steps)
  task = _Task(params, cfg, kinds, stops, drafting, rows, position_B, left_B, cap_B, room_B)
  over = lambda s: started_B & task.ended(s.out)

  def going(s: _State) -> jax.Array:
    ended = over(s).any() & (s.idle >= patience)
    return s.live_B.any() & ~(s.live_B & (s.out.count_B >= steps)).any() & ~ended

  def one(s: _State) -> _State:
    return _round(task, s)._replace(idle=s.idle + over(s).sum())

  first = _State(
    jnp.int32(0), jnp.int32(0), token_B, started_B, memory,
    tally(*rows.history, position_B + 1, cfg.vocab) if kinds.penalties else None,
    text_BM, jnp.zeros((B, most * (K + 1)), bool) if K else None,
    burst.blank(cfg, most * (K + 1), min(kinds.support, cfg.vocab), draft_BK),
  )  # fmt: skip
  last = jax.lax.while_loop(going, one, first)
  if not K:
    return last.memory, last.out._replace(draft_BK=None)
  return last.memory, burst.closed(last.out, last.taken_BC, most)


def _text(rows: Rows, kinds: Kinds, drafting: Drafting | None) -> jax.Array | None:
  """The text to look drafts up in, where that is how they are made."""
  looks = isinstance(drafting, NGram)
  if rows.history is None and (looks or kinds.penalties):
    raise ValueError('penalties and NGram need each text: give Rows.history')
  return rows.history.tokens_BM if looks else None


def _forward(
  params: Any, cfg: ModelConfig, tokens_BL: jax.Array, place: Place, cache: tuple
) -> transformer.Output:
  inputs = Inputs(tokens_BL, place.positions_BL, place.segments_BL, table_BT=place.table_BT)
  return Transformer(cfg).apply({'params': params}, inputs, cache)


def _round(t: _Task, s: _State) -> _State:
  """Checks the drafts, writes what holds and one token more, drafts anew."""
  draft_BK, done_B = s.out.draft_BK, s.out.count_B
  (B, K), at_L = draft_BK.shape, jnp.arange(draft_BK.shape[1] + 1)
  here_B = t.position_B + done_B
  tokens_BL = jnp.concatenate([s.token_B[:, None], draft_BK], 1)
  read_BL = s.live_B[:, None] & (tokens_BL >= 0)
  place = Place(here_B[:, None] + at_L, read_BL.astype(jnp.int32), table_BT=t.rows.table_BT)
  made = _forward(t.params, t.cfg, jnp.maximum(tokens_BL, 0), place, s.memory.cache)
  counts = s.counts if s.counts is None or not K else count_ahead(s.counts, draft_BK)
  new = _draw(t.params, t.cfg, made.x_BLD, here_B + 1, t.rows, t.kinds, counts)

  own_BL = new.token_B.reshape(B, K + 1)
  accepted_B = agree(draft_BK, own_BL)
  stop_BL = jnp.isin(own_BL, jnp.asarray(t.stops, jnp.int32))
  taken_BL = s.live_B[:, None] & (at_L <= accepted_B[:, None])
  taken_BL &= (at_L < (t.room_B - done_B)[:, None]) & (jnp.cumsum(stop_BL, 1) - stop_BL == 0)
  out = burst.written(s.out, s.round, taken_BL, new, made.routes)
  taken_BC = s.taken_BC
  if K:
    taken_BC = jax.lax.dynamic_update_slice_in_dim(taken_BC, taken_BL, s.round * (K + 1), 1)
  n_B = out.count_B - done_B
  stopped_B = out.stopped_B | (stop_BL & taken_BL).any(1)
  out = out._replace(stopped_B=stopped_B)
  live_B = s.live_B & ~stopped_B & (out.count_B < t.cap_B)

  counts, text_BM = _follow(s, own_BL, taken_BL, here_B + 1)
  next_BK, modules = drafts.propose(
    t.drafting, t.params, t.cfg, made, own_BL,
    place._replace(segments_BL=taken_BL.astype(jnp.int32)), s.memory.modules,
    t.choose(counts), text_BM, here_B + n_B + 1,
  )  # fmt: skip
  offered_BK = read_BL[:, 1:] & (at_L[:-1] < (t.room_B - done_B)[:, None])
  out = out._replace(
    draft_BK=_next(draft_BK, next_BK, s.live_B, t.ended(out)),
    drafted_B=out.drafted_B + offered_BK.sum(1),
    accepted_B=out.accepted_B + jnp.minimum(accepted_B, n_B),
  )
  newest_B = jnp.take_along_axis(own_BL, jnp.maximum(n_B - 1, 0)[:, None], 1)[:, 0]
  memory = Memory(made.cache, modules)
  return _State(s.round + 1, s.idle, newest_B, live_B, memory, counts, text_BM, taken_BC, out)


def _next(
  draft_BK: jax.Array, next_BK: jax.Array | None, live_B: jax.Array, ended_B: jax.Array
) -> jax.Array:
  """Drafts to check next: new ones of rows that this round read, −1 of those that have ended."""
  if next_BK is None:
    return draft_BK
  return jnp.where(ended_B[:, None], -1, jnp.where(live_B[:, None], next_BK, draft_BK))


def _follow(
  s: _State, own_BL: jax.Array, taken_BL: jax.Array, position_B: jax.Array
) -> tuple[Counts | None, jax.Array | None]:
  """Counts and text with the tokens taken, the first of them at `position`."""
  counts, text_BM = s.counts, s.text_BM
  if counts is not None:
    for own_B, taken_B in zip(own_BL.T, taken_BL.T):
      counts = count(counts, own_B, taken_B)
  if text_BM is not None:
    (B, L), M = own_BL.shape, text_BM.shape[1]
    to_BL = jnp.where(taken_BL, position_B[:, None] + jnp.arange(L), M)
    text_BM = text_BM.at[jnp.arange(B)[:, None], to_BL].set(own_BL, mode='drop')
  return counts, text_BM


def _draw(
  params: Any,
  cfg: ModelConfig,
  x_BLD: jax.Array,
  position_B: jax.Array,
  rows: Rows,
  kinds: Kinds,
  counts: Counts | None,
) -> Drawn:
  """The tokens at `position` and behind it, [B · L], from the hidden states before them."""
  B, L, D = x_BLD.shape
  logits_TV = transformer.logits(params, cfg, x_BLD.reshape(B * L, D))
  key_B = jax.random.wrap_key_data(rows.seed_BW)
  key_T = row_keys(key_B, position_B[:, None] + jnp.arange(L)).reshape(-1)
  controls = jax.tree.map(lambda x_B: jnp.repeat(x_B, L, 0), rows.controls)
  sample = lambda x, k, c, n: sample_rows(x, k, c, kinds, n)
  return rules.by_rows(sample, logits_TV, key_T, controls, counts)
