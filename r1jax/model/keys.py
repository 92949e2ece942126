"""Key tokens of hybrid attention: which tokens are seen from beyond the window.

A candidate becomes a key token if there is room: of the first t + window positions of a segment no
more than share · (t + window) are taken, and no more than `slots`. With candidates x_t, their sum
X_t within the segment and room q_t, the number taken up to t is

    c_t = min(c_{t−1} + x_t, q_t) = min(X_t, min_{s≤t} (q_s + X_t − X_s))

so the choice is causal, does not depend on packing or on what comes later, and is the same token by
token from a cache as over the whole sequence. Room is counted at t + window because no query sees
token t as a key token before that: so all that are ever seen in a row of L fit into share · L.

Cost: a few passes over L numbers a layer.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.matmul import matmul
from r1jax.model.config import Gate, Hybrid, KeyScores, KeyTokens, ModelConfig
from r1jax.model.primitives import weight
from r1jax.model.types import Place


def listed(cfg: ModelConfig, tokens_BL: jax.Array) -> jax.Array | None:
  """Whether each token is one of the config's key ids; None where no layer asks."""
  if not cfg.asks_for_key_ids:
    return None
  table_V = np.zeros(cfg.vocab, bool)
  table_V[list(cfg.key_ids)] = True
  return jnp.asarray(table_V)[tokens_BL]


class Marks(NamedTuple):
  """What a hybrid layer makes of each token beside q, k, v; None where the pattern has no use."""

  candidates_BL: jax.Array | None = None
  value_BL: jax.Array | None = None  # 2σ(score), the factor of its value
  gate_BLN: jax.Array | None = None  # of the window, against the key tokens


def marks(module: nn.Module, x_BLD: jax.Array, place: Place) -> Marks:
  """Candidates, and by the module's own weights scores and gates."""
  pattern, D, N = module.cfg.pattern, x_BLD.shape[-1], module.cfg.heads
  if not isinstance(pattern, Hybrid):
    return Marks()
  gate_BLN = None
  if pattern.mix == Gate():
    gate_DN = weight(module, 'gate', (D, N), ('embed', 'heads'))
    bias_N = weight(module, 'gate_bias', (N,), ('heads',), nn.initializers.zeros)
    gate_BLN = jax.nn.sigmoid(matmul('BLD,DN->BLN', x_BLD, gate_DN).astype('float32') + bias_N)
  match pattern.keys:
    case KeyScores():
      score_D1 = weight(module, 'key_score', (D, 1), ('embed', None))
      score_BL = matmul('BLD,DN->BLN', x_BLD, score_D1)[..., 0].astype('float32')
      return Marks(score_BL > 0, 2 * jax.nn.sigmoid(score_BL), gate_BLN)
    case KeyTokens(first=first):
      if place.listed_BL is None:
        raise ValueError('key tokens need Place.listed_BL: which tokens the config lists')
      return Marks(place.listed_BL | (place.positions_BL < first), None, gate_BLN)


def weighed(x: jax.Array, marked: Marks) -> jax.Array:
  """Values (of MLA the latent), [B, L, …], times the factor of their token."""
  if marked.value_BL is None:
    return x
  return x * jnp.expand_dims(marked.value_BL, range(2, x.ndim)).astype(x.dtype)


def entry(marked: Marks, dtype: jnp.dtype) -> jax.Array | None:
  """What a cache keeps of a token's marks: whether it is a candidate, [B, L, 1]."""
  if marked.candidates_BL is None:
    return None
  return marked.candidates_BL[..., None].astype(dtype)


def chosen(
  candidates_BL: jax.Array, positions_BL: jax.Array, segments_BL: jax.Array, pattern: Hybrid
) -> jax.Array:
  """Which candidates there is room for; positions start at 0 in each segment."""
  there_BL = segments_BL > 0
  x_BL = (candidates_BL & there_BL).astype(jnp.int32)
  sum_BL = jnp.cumsum(x_BL, 1)
  room_BL = room(positions_BL + pattern.window, pattern)
  slack_BL = since_start(room_BL - sum_BL, positions_BL == 0)
  start_BL = at_start(sum_BL - x_BL, positions_BL == 0)
  count_BL = jnp.minimum(sum_BL - start_BL, sum_BL + slack_BL)
  before_BL = jnp.pad(count_BL, ((0, 0), (1, 0)))[:, :-1]
  return there_BL & (count_BL > jnp.where(positions_BL == 0, 0, before_BL))


def counted(
  candidates_BL: jax.Array,
  positions_BL: jax.Array,
  there_BL: jax.Array,
  before_B: jax.Array,
  pattern: Hybrid,
) -> jax.Array:
  """c_t over neighbouring tokens of one sequence, `before` of whose earlier ones were taken.

  Key tokens are where it rises. Tokens that are not there leave it as it is.
  """
  sum_BL = jnp.cumsum((candidates_BL & there_BL).astype(jnp.int32), 1)
  room_BL = jnp.where(there_BL, room(positions_BL + pattern.window, pattern), 1 << 30)
  slack_BL = jax.lax.cummin(room_BL - sum_BL, axis=1)
  return sum_BL + jnp.minimum(before_B[:, None], slack_BL)


def most(pattern: Hybrid, length: int) -> int:
  """How many key tokens queries of one sequence of `length` can ever see."""
  if length < 1:
    raise ValueError(
      f'key tokens of sequences of {length} tokens: say how many they have at most (`longest`)'
    )
  return max(room(length - 1, pattern), 1)


def room(reach: jax.Array | int, pattern: Hybrid) -> jax.Array | int:
  """How many of `reach` positions may be key tokens; integers are the same on every device."""
  by = 1 << 12
  share = max(round(pattern.keys.share * by), 1)
  room = reach // by * share + reach % by * share // by
  if pattern.keys.slots is None:
    return room
  return (min if isinstance(room, int) else jnp.minimum)(room, pattern.keys.slots)


def since_start(x_BL: jax.Array, starts_BL: jax.Array) -> jax.Array:
  """The least x since the latest start."""

  def join(a: tuple, b: tuple) -> tuple:
    (low, reset), (next_low, next_reset) = a, b
    return jnp.where(next_reset, next_low, jnp.minimum(low, next_low)), reset | next_reset

  return jax.lax.associative_scan(join, (x_BL, starts_BL), axis=1)[0]


def at_start(x_BL: jax.Array, starts_BL: jax.Array) -> jax.Array:
  """x at the latest start, of an x that does not fall."""
  return jax.lax.cummax(jnp.where(starts_BL, x_BL, 0), axis=1)


def gathered(chosen_BL: jax.Array, tokens: Tokens, pattern: Hybrid) -> tuple[jax.Array, Tokens]:
  """Places of a row's key tokens in order, [B, G], and where those stand.

  Only tokens that some query sees from beyond its window: G = share · L slots hold them all.
  Unfilled slots are padding.
  """
  B, L = chosen_BL.shape
  whole = dataclasses.replace(pattern, keys=dataclasses.replace(pattern.keys, slots=None))
  G = max(room(L - 1, whole), 1)  # slots are counted by segment, and a row may hold many
  later_BL = jnp.pad(tokens.segments_BM, ((0, 0), (0, pattern.window)))[:, pattern.window :]
  wanted_BL = chosen_BL & (later_BL == tokens.segments_BM)
  slot_BL = jnp.where(wanted_BL, jnp.cumsum(wanted_BL, 1) - 1, G)
  rows_B1 = jnp.arange(B)[:, None]
  at_BG = jnp.full((B, G), L, jnp.int32).at[rows_B1, slot_BL].set(jnp.arange(L), mode='drop')
  take = lambda x, fill: jnp.take_along_axis(x, at_BG, 1, mode='fill', fill_value=fill)
  return at_BG, Tokens(take(tokens.index_BM, L), take(tokens.segments_BM, 0))
