"""Which blocks a query attends to whole: where they lie in packed rows, their scores, the choice.

With p_c the probability that a query gives to summary c, a head's score of block j is

    score_j = Σ_c p_c · (how many strides of summary c lie in block j)

which is eq. 9 of NSA (arXiv 2502.11089, indices from 1 there): a sum over the strides of the block,
and for each over the summaries that hold it. The heads of a kv group add up their scores (eq. 10)
and share the choice. The first blocks of a segment and the last before the query are always taken.

Blocks are counted from the start of each segment, while kernels/selected takes pages of a row. So
segments longer than a page are laid out to begin on one; the others follow where there is room and
have two pages at most, both of which are taken. A row of L needs fewer than 2·L places.

Cost: 2·B·L·N·C·H flops for the scores, C = M / stride; memory O(chunk · N · C): never L × M.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.blocks import specs
from r1jax.kernels.attention.lists import BEYOND, Band, Tokens
from r1jax.kernels.attention.reference import masked_softmax, sees
from r1jax.kernels.chunks import over_chunks
from r1jax.kernels.platform import sums
from r1jax.model.cache import newest
from r1jax.model.config import Blocks
from r1jax.model.types import Place


class Layout(NamedTuple):
  """The token that stands at each place, L where none does, and the place of each token."""

  token_BM: jax.Array
  place_BL: jax.Array


class Range(NamedTuple):
  """The first and the last page that a query may choose; the last is its own."""

  first_BL: jax.Array
  last_BL: jax.Array


def layout(positions_BL: jax.Array, segments_BL: jax.Array, size: int) -> Layout:
  """Rows in pages of `size` places, where each block of a segment is a page."""
  B, L = positions_BL.shape
  index_L = jnp.arange(L, dtype=jnp.int32)
  later_BL = jnp.pad(segments_BL, ((0, 0), (0, size)))[:, size:]
  turns_BL = (positions_BL == 0) & (segments_BL > 0) & (later_BL == segments_BL)
  since_BL = jax.lax.cummax(jnp.where(turns_BL, index_L, 0), axis=1)
  before_BL = jnp.pad(since_BL, ((0, 0), (1, 0)))[:, :-1]
  pages_BL = jnp.where(turns_BL, -(-(index_L - before_BL) // size), 0)
  place_BL = size * jnp.cumsum(pages_BL, 1) + index_L - since_BL
  # Each of at most L / (size + 1) turns, and the end, may leave a page all but empty.
  pages = (L + (L // (size + 1) + 1) * (size - 1)) // size
  rows_B1 = jnp.arange(B)[:, None]
  token_BM = jnp.full((B, pages * size), L, jnp.int32).at[rows_B1, place_BL].set(index_L)
  return Layout(token_BM, place_BL)


def starts(positions_BL: jax.Array, segments_BL: jax.Array, pattern: Blocks) -> jax.Array:
  """The first token of every block that is summed up, in order, [B, C]; L where there is none."""
  B, L = positions_BL.shape
  reach = pattern.compress - 1
  last_BL = jnp.pad(segments_BL, ((0, 0), (0, reach)))[:, reach:]
  begins_BL = (positions_BL % pattern.stride == 0) & (segments_BL > 0) & (last_BL == segments_BL)
  C = max((L - pattern.compress) // pattern.stride + 1, 1)
  slot_BL = jnp.where(begins_BL, jnp.cumsum(begins_BL, 1) - 1, C)
  rows_B1, index_L = jnp.arange(B)[:, None], jnp.arange(L, dtype=jnp.int32)
  return jnp.full((B, C), L, jnp.int32).at[rows_B1, slot_BL].set(index_L, mode='drop')


def by_unit(starts_BC: jax.Array, laid: Layout, pattern: Blocks) -> jax.Array:
  """The summary whose last token stands in each stride of a layout, [B, U]; C where none does.

  Of segments that share a page several may: those need no scores.
  """
  (B, C), L = starts_BC.shape, laid.place_BL.shape[1]
  U = laid.token_BM.shape[1] // pattern.stride
  last_BC = jnp.where(starts_BC < L, starts_BC + pattern.compress - 1, L)
  place_BC = jnp.take_along_axis(
    laid.place_BL, last_BC, 1, mode='fill', fill_value=U * pattern.stride
  )
  slots_BU = jnp.full((B, U), C, jnp.int32)
  rows_B1, slot_C = jnp.arange(B)[:, None], jnp.arange(C, dtype=jnp.int32)
  return slots_BU.at[rows_B1, place_BC // pattern.stride].set(slot_C, mode='drop')


def completed(place: Place, pattern: Blocks) -> Place:
  """Where in a cache the summaries stand that this chunk of each row may have made, [B, C].

  By the stride that a block ends in, the latest last; BEYOND, of segment 0, where none ends yet. As
  many for every chunk of a length; what an earlier chunk completed comes out as it was.
  """
  C = (place.positions_BL.shape[1] - 1) // pattern.stride + 1
  last_B = (newest(place) + 1) // pattern.stride - 1
  unit_BC = last_B[:, None] - jnp.arange(C - 1, -1, -1)
  there_BC = unit_BC >= first_unit(pattern)
  return place._replace(
    positions_BL=jnp.where(there_BC, unit_BC, BEYOND), segments_BL=there_BC.astype(jnp.int32)
  )


def first_unit(pattern: Blocks) -> int:
  """The first stride of a sequence in which a block ends."""
  return pattern.compress // pattern.stride - 1


def stored(rows: int, count: int, pattern: Blocks) -> Tokens:
  """The last token of each stride that a cache has room for; segment 0 where no block can end.

  There nothing is ever written.
  """
  unit_U = jnp.arange(count, dtype=jnp.int32)
  last_U, there_U = (unit_U + 1) * pattern.stride - 1, unit_U >= first_unit(pattern)
  row = lambda x_U: jnp.broadcast_to(x_U.astype(jnp.int32), (rows, count))
  return Tokens(row(last_U), row(there_U))


def choose(
  q_BLNH: jax.Array,
  k_BCKH: jax.Array,
  queries: Tokens,
  summaries: Tokens,
  pages: Range,
  units_BU: jax.Array,
  pattern: Blocks,
  scale: float,
  chunk: int = 128,
) -> jax.Array:
  """ids_BLKT of the chosen pages, best first, then −1; units_BU as by_unit has it. No gradient."""

  def run(q, k, queries, summaries, pages, units):
    def one(_: None, piece: tuple) -> tuple[None, jax.Array]:
      q, here, pages = piece
      p_BLKC = probabilities(q, k, here, summaries, scale)
      return None, best(scores(p_BLKC, units, pattern), pages, pattern)

    return over_chunks(one, None, (q, queries, pages), chunk)[1]

  q_BLNH, k_BCKH = jax.lax.stop_gradient((q_BLNH, k_BCKH))
  told = q_BLNH, k_BCKH, queries, summaries, pages, units_BU
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(*told)
  q, k, q_tokens, k_tokens = specs(q_BLNH, k_BCKH, mesh)
  rows = jax.P(*q[:2])
  split = q, k, q_tokens, k_tokens, Range(rows, rows), jax.P(q[0], None)
  return jax.shard_map(run, in_specs=split, out_specs=jax.P(*q[:2], k[2], None))(*told)


def probabilities(
  q_BLNH: jax.Array, k_BCKH: jax.Array, queries: Tokens, summaries: Tokens, scale: float
) -> jax.Array:
  """p_BLKC of the summaries that end at the query or before, summed over the heads of a group."""
  q_BLKGH = rearrange(q_BLNH, 'B L (K G) H -> B L K G H', K=k_BCKH.shape[2])
  s_BLKGC = jnp.einsum('BLKGH,BCKH->BLKGC', q_BLKGH, k_BCKH, preferred_element_type=sums(q_BLNH))
  return masked_softmax(scale * s_BLKGC, sees(queries, summaries, Band())[:, :, None, None]).sum(3)


def scores(p_BLKC: jax.Array, units_BU: jax.Array, pattern: Blocks) -> jax.Array:
  """score_BLKP of the pages."""
  at_B11U = units_BU[:, None, None]
  p_BLKU = jnp.take_along_axis(p_BLKC, at_B11U, 3, mode='fill', fill_value=0)
  each, U = pattern.compress // pattern.stride, units_BU.shape[1]
  p_BLKU = jnp.pad(p_BLKU, ((0, 0),) * 3 + ((0, each - 1),))
  # A stride is held by the summaries that end in it and in the next ones.
  held_BLKU = sum(p_BLKU[..., n : n + U] for n in range(each))
  in_page = pattern.select // pattern.stride
  return rearrange(held_BLKU, 'B L K (P e) -> B L K P e', e=in_page).sum(-1)


def best(score_BLKP: jax.Array, pages: Range, pattern: Blocks) -> jax.Array:
  """ids_BLKT: the pages always taken and the best of the others, of those open to a query."""
  P = score_BLKP.shape[-1]
  page_P = jnp.arange(P)
  first_BL11, last_BL11 = (x[:, :, None, None] for x in pages)
  always = (page_P < first_BL11 + pattern.first) | (page_P > last_BL11 - pattern.local)
  score_BLKP = jnp.where(always, jnp.inf, score_BLKP)
  open_ = (page_P >= first_BL11) & (page_P <= last_BL11)
  score_BLKP = jnp.where(open_, score_BLKP, -jnp.inf)
  top_BLKT, ids_BLKT = jax.lax.top_k(score_BLKP, min(pattern.selected, P))
  return jnp.where(top_BLKT > -jnp.inf, ids_BLKT, -1).astype(jnp.int32)
