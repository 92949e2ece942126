"""Who drafts in continuous batching: the model's prediction modules, or the text itself.

    Modules(K)            K tokens by engine/speculative.py, drawn as the model itself draws them
    NGram(K, longest)     what engine/ngram.py proposes, on the device

All drafts are checked by `speculative.agree`: they cost or save time, and change no token. −1 is no
draft. Cost of a round, beside checking: of Modules K heads and at least K layers a row, and two
numbers drawn a draft; of NGram longest · M compares a row whose text has room for M tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.engine import speculative
from r1jax.engine.sampling import Controls, Counts, Kinds, sample_rows
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Output
from r1jax.model.types import Place
from r1jax.sharding import rules


@dataclasses.dataclass(frozen=True)
class Modules:
  """Drafts by the model's prediction modules; those beyond them by the last one."""

  count: int = 1

  def __post_init__(self):
    if self.count < 1:
      raise ValueError(f'Modules(count={self.count}); expected 1 or more (without drafts: None)')


@dataclasses.dataclass(frozen=True)
class NGram:
  """Drafts out of the text itself, by n-grams of up to `longest` tokens."""

  count: int = 4
  longest: int = 4

  def __post_init__(self):
    if min(self.count, self.longest) < 1:
      raise ValueError(f'{self}; expected 1 or more of both (without drafts: None)')


Drafting = Modules | NGram


def count(drafting: Drafting | None) -> int:
  """Tokens drafted a round, 0 without drafting."""
  return drafting.count if drafting else 0


def propose(
  drafting: Drafting | None,
  params: Any,
  cfg: ModelConfig,
  out: Output,
  ahead_BL: jax.Array,
  place: Place,
  modules: tuple,
  choose: speculative.Choose,
  text_BM: jax.Array | None,
  length_B: jax.Array,
) -> tuple[jax.Array | None, tuple]:
  """(drafts [B, K] of the tokens behind each text, the modules' caches), None without drafting.

  out: of the forward pass that read the positions of `place`, whose next tokens are ahead_BL;
  segments 0 are those that do not count. length_B: tokens of text_BM, ahead's last one included.
  """
  match drafting:
    case Modules(K):
      h_BLD = speculative.hidden(out, cfg)
      made = speculative.draft(params, cfg, h_BLD, ahead_BL, place, modules, K, choose)
      return made.tokens_BK, made.cache
    case NGram(K, longest):
      return lookup(text_BM, length_B, K, longest), modules
    case None:
      return None, modules


def choose_rows(
  key_B: jax.Array, controls: Controls, kinds: Kinds, counts: Counts | None
) -> speculative.Choose:
  """Drafts drawn by each row's own parameters and the numbers of their positions.

  counts: of the text before the drafts, which do not count among themselves.
  """

  def choose(logits_BV: jax.Array, position_B: jax.Array) -> tuple[jax.Array, None]:
    keys_B = speculative.row_keys(key_B, position_B[:, None])[:, 0]
    return rules.by_rows(
      lambda x, k, c, n: sample_rows(x, k, c, kinds, n), logits_BV, keys_B, controls, counts
    ).token_B, None

  return choose


def lookup(tokens_BM: jax.Array, length_B: jax.Array, k: int, longest: int) -> jax.Array:
  """`ngram.propose` of each row's first `length` tokens: drafts [B, k], −1 where it has none.

  Where token i goes on from a place that the end of the text matches n tokens back, i is worth
  n · M + i: the longest match wins, of equals the latest.
  """
  M = tokens_BM.shape[1]
  at_M, end_B1 = jnp.arange(M), length_B[:, None]
  same_BM = (at_M > 0) & (at_M < end_B1)  # only what stands before the end has a continuation
  match_BM = jnp.zeros_like(tokens_BM)
  for n in range(1, longest + 1):
    last_B1 = jnp.take_along_axis(tokens_BM, jnp.maximum(end_B1 - n, 0), 1)
    same_BM &= (jnp.roll(tokens_BM, n, 1) == last_B1) & (at_M >= n)
    match_BM += same_BM
  from_B1 = jnp.argmax(jnp.where(match_BM > 0, match_BM * M + at_M, 0), 1, keepdims=True)
  from_Bk = from_B1 + jnp.arange(k) % jnp.maximum(end_B1 - from_B1, 1)
  draft_Bk = jnp.take_along_axis(tokens_BM, jnp.minimum(from_Bk, M - 1), 1)
  # Place 0 has nothing before it: where that is the best, nothing matched.
  return jnp.where(from_B1 > 0, draft_Bk, -1)
