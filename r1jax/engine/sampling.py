"""One token a row from logits, with its log-probability under the distribution it came from.

The draw inverts the distribution function in two steps, first a block of `BLOCK` tokens by the
blocks' masses, then a token within it: two uniform numbers a row where Gumbel noise needs V. (At
64 × 49,152 on two cores: 3 ms in place of 76.) Tokens of zero mass are never drawn.

`sample` and `sample_within` have one static Sampling a batch; `sample_rows` has parameters a row,
which a request brings (`RequestSampling`), and compiles by their `Kinds` alone. Its order is that
of transformers: repetition, presence and frequency penalties on raw logits, temperature, top-k,
top-p, min-p. (vLLM has min-p before top-k and top-p, which then see less mass to share out; every
other step is in the same place.)

    z = ((l / r if l > 0 else l · r) where seen − presence · [n > 0] − frequency · n) / temperature

n counts the token in the completion; seen is in it or in the prompt. Cost a row and step: a sort of
V numbers if a row of the batch has top-k or top-p beyond `support`, else the K = `support` best of
V, else neither; penalties hold 3·B·V bytes of counts and pass over them once.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.kernels.logprob import picked, score
from r1jax.kernels.logprob.truncate import FILLER, Sampling, restrict, support, truncate

BLOCK = 256
MOST = np.iinfo(np.int16).max  # a count stays there


@dataclasses.dataclass(frozen=True)
class RequestSampling(Sampling):
  """What one request asks for; the defaults are off. A trainer scores what Sampling has, no more.

  min_p: tokens below min_p times the likeliest one's probability leave. repetition divides positive
  logits of tokens of prompt and completion, and multiplies negative ones. presence is subtracted
  for a token of the completion, frequency for each time that it occurs there.
  """

  min_p: float = 0.0
  repetition: float = 1.0
  presence: float = 0.0
  frequency: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    finite = all(math.isfinite(x) for x in dataclasses.astuple(self))
    if not (finite and 0 <= self.min_p <= 1 and self.repetition > 0):
      raise ValueError(f'need 0 ≤ min_p ≤ 1, repetition > 0, all of them finite; got {self}')

  @property
  def penalized(self) -> bool:
    """Whether what was written changes what comes."""
    return (self.repetition, self.presence, self.frequency) != (1, 0, 0)


class Controls(NamedTuple):
  """The fields of RequestSampling, a number a row."""

  temperature_B: jax.Array
  top_k_B: jax.Array
  top_p_B: jax.Array
  min_p_B: jax.Array
  repetition_B: jax.Array
  presence_B: jax.Array
  frequency_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Kinds:
  """What some row of a batch needs, static for the compiler; min-p is done for all, as it is cheap.

  truncation: a row has top-p below 1 or a top-k, and not 1 ≤ top-k ≤ support. penalties: counts are
  given. support: ids that a row gives back at most; 0 gives none.
  """

  truncation: bool = False
  penalties: bool = False
  support: int = 0


class Counts(NamedTuple):
  """Which tokens a row's prompt has, and how often its completion has each (int16, up to MOST)."""

  seen_BV: jax.Array
  written_BV: jax.Array


class Drawn(NamedTuple):
  """A token a row, its log-probability, and the ids that it was drawn from, FILLER behind them."""

  token_B: jax.Array
  logp_B: jax.Array
  support_BK: jax.Array | None


def sample(
  logits_BV: jax.Array, key_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
  """(token_B, logp_B); temperature 0 takes the most likely token and scores it at temperature 1."""
  if sampling.temperature == 0:
    token_B = jnp.argmax(logits_BV, -1).astype(jnp.int32)
  else:
    token_B = draw(truncate(logits_BV, sampling), key_B)
  return token_B, score(logits_BV, token_B, sampling).logp


def sample_within(
  logits_BV: jax.Array, key_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(token_B, logp_B, ids_BK): drawn from at most K = top_k tokens, whose ids are given back."""
  ids_BK = support(logits_BV, sampling)
  z_BV = restrict(logits_BV, ids_BK, sampling.temperature)
  token_B = ids_BK[:, 0] if sampling.temperature == 0 else draw(z_BV, key_B)
  return token_B, picked(z_BV, token_B).logp, ids_BK


def controls(rows: Sequence[RequestSampling], support: int = 0) -> tuple[Controls, Kinds]:
  """Parameters of a batch as arrays of the host, and what they need."""
  numbers_BX = np.array([_numbers(r) for r in rows], np.float32)  # top-k too: exact below 2**24
  temperature_B, top_k_B, *rest = numbers_BX.T
  distinct = {id(r): r for r in rows}.values()
  within = lambda r: 1 <= r.top_k <= support
  return Controls(temperature_B, top_k_B.astype(np.int32), *rest), Kinds(
    truncation=any((r.top_k or r.top_p < 1) and not within(r) for r in distinct),
    penalties=any(r.penalized for r in distinct),
    support=support,
  )


@functools.lru_cache
def _numbers(row: RequestSampling) -> tuple[float, ...]:
  return dataclasses.astuple(row)


def sample_rows(
  logits_BV: jax.Array,
  key_B: jax.Array,
  controls: Controls,
  kinds: Kinds,
  counts: Counts | None = None,
) -> Drawn:
  """One token a row, each row as if alone; temperature 0 is greedy, scored at temperature 1.

  A row of equal parameters has the token and the log-probability of `sample`, or with a support
  that holds its top-k those of `sample_within`.
  """
  z_BV, ids_BK = shape_rows(logits_BV, controls, kinds, counts)
  token_B = jnp.where(controls.temperature_B == 0, _likeliest(z_BV), draw(z_BV, key_B))
  return Drawn(token_B, picked(z_BV, token_B).logp, ids_BK)


def shape_rows(
  logits_BV: jax.Array, controls: Controls, kinds: Kinds, counts: Counts | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """z_BV whose softmax is what a row draws from, and the ids [B, K] that it keeps.

  A row whose top-k is 0 or above kinds.support has fillers alone: its set may be larger.
  """
  if kinds.penalties:
    if counts is None:
      raise ValueError('kinds.penalties is set, but counts is None: give those of `tally`')
    logits_BV = _penalize(logits_BV, controls, counts)
  temperature_B1 = controls.temperature_B[:, None]
  z_BV = logits_BV / jnp.where(temperature_B1 == 0, 1.0, temperature_B1)
  least_B1 = z_BV.max(-1, keepdims=True) + jnp.log(controls.min_p_B)[:, None]
  shaped_BV, ids_BK = z_BV, None
  if kinds.truncation:
    shaped_BV = _cut(shaped_BV, controls)
  if kinds.support:
    within_B1 = ((controls.top_k_B > 0) & (controls.top_k_B <= kinds.support))[:, None]
    ids_BK = jnp.where(within_B1, _best(z_BV, least_B1, controls, kinds.support), FILLER)
    # Bounded rows skip the cut, whose rounding could differ; fillers alone keep all that it left.
    shaped_BV = restrict(jnp.where(within_B1, z_BV, shaped_BV), ids_BK, 1.0)
  return jnp.where(z_BV >= least_B1, shaped_BV, -jnp.inf), ids_BK


def _penalize(logits_BV: jax.Array, controls: Controls, counts: Counts) -> jax.Array:
  """Penalties on raw logits."""
  repetition_B1, presence_B1, frequency_B1 = (x_B[:, None] for x_B in controls[-3:])
  written_BV = counts.written_BV > 0
  less_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
  z_BV = jnp.where(counts.seen_BV | written_BV, less_BV, logits_BV)
  return z_BV - frequency_B1 * counts.written_BV - presence_B1 * written_BV


def _cut(z_BV: jax.Array, controls: Controls) -> jax.Array:
  """−inf outside each row's top-k and top-p; what `truncate` does, by one sort."""
  V = z_BV.shape[-1]
  k_B = jnp.where(controls.top_k_B > 0, jnp.minimum(controls.top_k_B, V), V)
  sorted_BV = -jnp.sort(-z_BV, axis=-1)
  kth_B1 = jnp.take_along_axis(sorted_BV, k_B[:, None] - 1, -1)
  sorted_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
  p_BV = jax.nn.softmax(sorted_BV, axis=-1)
  top_p_B1 = controls.top_p_B[:, None]
  # By rounding, a cumulative sum may reach 1 early: top-p 1 keeps everything by itself.
  kept_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p_B1) | (top_p_B1 >= 1)
  lowest_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), -1, keepdims=True)
  return jnp.where(z_BV >= jnp.maximum(lowest_B1, kth_B1), z_BV, -jnp.inf)


def _best(z_BV: jax.Array, least_B1: jax.Array, controls: Controls, K: int) -> jax.Array:
  """Ids of the kept set ≥ least, for rows with 1 ≤ top-k ≤ K; what `support` does otherwise."""
  # Its results are never sliced: XLA then makes a sort of V of it, which took 150 times as long.
  best_BK, ids_BK = jax.lax.top_k(z_BV, min(K, z_BV.shape[-1]))
  first_BK = jnp.arange(best_BK.shape[-1]) < controls.top_k_B[:, None]
  p_BK = jax.nn.softmax(jnp.where(first_BK, best_BK, -jnp.inf), axis=-1)
  top_p_B1 = controls.top_p_B[:, None]
  kept_BK = first_BK & ((jnp.cumsum(p_BK, axis=-1) - p_BK < top_p_B1) | (top_p_B1 >= 1))
  return jnp.where(kept_BK & (best_BK >= least_B1), ids_BK, FILLER).astype(jnp.int32)


def _likeliest(z_BV: jax.Array) -> jax.Array:
  """argmax, of equals the first, by two plain reductions (XLA's own took 16 times theirs)."""
  index_V = jnp.arange(z_BV.shape[-1], dtype=jnp.int32)
  top_BV = z_BV == z_BV.max(-1, keepdims=True)
  return jnp.min(jnp.where(top_BV, index_V, index_V[-1]), -1)


def tally(tokens_BL: jax.Array, prompt_B: jax.Array, length_B: jax.Array, vocab: int) -> Counts:
  """Counts of rows of which `prompt` tokens are prompt and those up to `length` completion."""
  B, L = tokens_BL.shape
  rows_B1, at_L = jnp.arange(B)[:, None], jnp.arange(L)
  prompt_BL = at_L < prompt_B[:, None]
  written_BL = (at_L < length_B[:, None]) & ~prompt_BL
  seen_BV = jnp.zeros((B, vocab), bool).at[rows_B1, tokens_BL].max(prompt_BL)
  written_BV = jnp.zeros((B, vocab), jnp.int32).at[rows_B1, tokens_BL].add(written_BL)
  return Counts(seen_BV, jnp.minimum(written_BV, MOST).astype(jnp.int16))


def count(counts: Counts, token_B: jax.Array, live_B: jax.Array) -> Counts:
  """The counts after one more token of each live row's completion."""
  at = jnp.arange(len(token_B)), token_B
  old_B = counts.written_BV[at]
  new_B = old_B + (live_B & (old_B < MOST)).astype(jnp.int16)
  return counts._replace(written_BV=counts.written_BV.at[at].set(new_B, unique_indices=True))


def count_ahead(counts: Counts, draft_BK: jax.Array) -> Counts:
  """Of B rows the counts [B · (K + 1), V] before each of their drafts, and behind the last.

  −1 counts as nothing.
  """
  V, K = counts.seen_BV.shape[1], draft_BK.shape[1]
  more_BKV = jnp.cumsum(jax.nn.one_hot(draft_BK, V, dtype=jnp.int32), 1)
  written_BLV = counts.written_BV[:, None] + jnp.pad(more_BKV, ((0, 0), (1, 0), (0, 0)))
  written_BLV = jnp.minimum(written_BLV, MOST).astype(jnp.int16)
  return Counts(jnp.repeat(counts.seen_BV, K + 1, 0), written_BLV.reshape(-1, V))


def draw(z_BV: jax.Array, key_B: jax.Array) -> jax.Array:
  """A token a row from softmax(z), by the row's key alone."""
  mass_BV = jnp.exp(z_BV - z_BV.max(-1, keepdims=True))
  mass_BV = jnp.pad(mass_BV, ((0, 0), (0, -z_BV.shape[-1] % BLOCK)))
  mass_Bnb = mass_BV.reshape(len(z_BV), -1, BLOCK)
  u_B2 = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(key_B)
  block_B = invert(mass_Bnb.sum(-1), u_B2[:, 0])
  within_B = invert(jnp.take_along_axis(mass_Bnb, block_B[:, None, None], 1)[:, 0], u_B2[:, 1])
  return (block_B * BLOCK + within_B).astype(jnp.int32)


def invert(mass_BV: jax.Array, u_B: jax.Array) -> jax.Array:
  """The first index whose cumulative mass exceeds u of the whole, 0 ≤ u < 1.

  A parallel prefix sum need not rise, by its rounding: that never picks an index without mass.
  """
  cumulative_BV = jnp.cumsum(mass_BV, -1)
  over_BV = (cumulative_BV > u_B[:, None] * cumulative_BV[:, -1:]) & (mass_BV > 0)
  return jnp.where(over_BV.any(-1), jnp.argmax(over_BV, -1), jnp.argmax(mass_BV, -1))
