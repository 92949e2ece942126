"""Which blocks of keys each block of queries visits: index lists in place of an L×M mask.

A query at p sees the keys m of its segment with near <= p − m < far (`Band`). Along a row indices
ascend and segments follow each other, so what a block of queries can see is a range of key blocks,
and what sees a block of keys a range of query blocks: two numbers a block (`Range`), found by
bisection over the first and last indices of the blocks. That holds for a sequence over itself, over
key tokens gathered from it and over summaries of its parts. A choice of blocks that is no range
comes as −1-padded ids (`Listed`).

Cost: O(L/b + M/b) numbers and a bisection each; Listed O(L/b · T). Which pairs inside two visiting
blocks see each other is computed from indices and segments where it is needed.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BEYOND = 2**30  # greater than any index; far below overflow when a distance is added


class Tokens(NamedTuple):
  """Where tokens stand in their rows.

  index_BM ascends along a row, and its differences inside a segment are distances. Segment 0 is
  padding: it neither sees nor is seen. The other segments ascend along a row, too.
  """

  index_BM: jax.Array
  segments_BM: jax.Array


@dataclasses.dataclass(frozen=True)
class Band:
  """How far from a query the keys lie that it sees: near <= distance < far; None: any distance."""

  near: int = 0
  far: int | None = None

  def __post_init__(self):
    if self.near < 0 or (self.far is not None and self.far <= self.near):
      raise ValueError(f'a band has 0 <= near < far, {self} was given')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Positions in a block of queries and in a block of keys."""

  query: int
  key: int


class Range(NamedTuple):
  """Block i visits first_BI[i] … first_BI[i] + count_BI[i] − 1."""

  first_BI: jax.Array
  count_BI: jax.Array


class Listed(NamedTuple):
  """Block i visits the blocks ids_BIT[i] up to the first −1."""

  ids_BIT: jax.Array


Visits = Range | Listed


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['visits'], meta_fields=['sizes', 'most']
)
@dataclasses.dataclass(frozen=True)
class Pass:
  """Who visits whom in one pass over the pairs; no block visits more than `most` others."""

  visits: Visits
  sizes: Sizes
  most: int


class Plan(NamedTuple):
  """The three passes; in d_key_value blocks of keys visit blocks of queries."""

  forward: Pass
  d_query: Pass
  d_key_value: Pass


class Spans(NamedTuple):
  """Of each block the first and last index and segment, made monotone over empty blocks."""

  first_BI: jax.Array
  last_BI: jax.Array
  first_segment_BI: jax.Array
  last_segment_BI: jax.Array
  filled_BI: jax.Array


def banded(
  queries: Tokens, keys: Tokens, band: Band, sizes: Sizes, transposed: bool = False
) -> Range:
  """The key blocks that each query block has to visit; transposed, the other way round.

  Both lengths are multiples of their block sizes.
  """
  q, k = spans(queries, sizes.query), spans(keys, sizes.key)
  far = BEYOND if band.far is None else band.far
  if transposed:
    return _range(k, q, k.first_BI + band.near, k.last_BI + far - 1)
  return _range(q, k, q.first_BI - far + 1, q.last_BI - band.near)


def _range(here: Spans, there: Spans, low_BI: jax.Array, high_BI: jax.Array) -> Range:
  """Blocks there which hold indices of low … high and a segment that is here."""

  def before(sorted_BJ: jax.Array, x_BI: jax.Array, side: str) -> jax.Array:
    return jax.vmap(functools.partial(jnp.searchsorted, side=side))(sorted_BJ, x_BI)

  first_BI = jnp.maximum(
    before(there.last_BI, low_BI, 'left'),
    before(there.last_segment_BI, here.first_segment_BI, 'left'),
  )
  end_BI = jnp.minimum(
    before(there.first_BI, high_BI, 'right'),
    before(there.first_segment_BI, here.last_segment_BI, 'right'),
  )
  count_BI = jnp.where(here.filled_BI, jnp.maximum(end_BI - first_BI, 0), 0)
  return Range(jnp.where(count_BI > 0, first_BI, 0).astype(jnp.int32), count_BI.astype(jnp.int32))


def spans(tokens: Tokens, size: int) -> Spans:
  """Extremes of blocks of `size`; padding does not count."""
  blocks = lambda x_BM: x_BM.reshape(x_BM.shape[0], -1, size)
  there = blocks(tokens.segments_BM) > 0
  low = lambda x: jnp.where(there, blocks(x), BEYOND).min(-1)
  high = lambda x: jnp.where(there, blocks(x), -1).max(-1)
  ends = ((low(x), high(x)) for x in tokens)
  monotone = [(jax.lax.cummin(a, axis=1, reverse=True), jax.lax.cummax(b, axis=1)) for a, b in ends]
  return Spans(*monotone[0], *monotone[1], there.any(-1))


def most_visited(band: Band, size: int, other: int, blocks: int) -> int:
  """A bound of the blocks of `other` that a block of `size` consecutive indices visits."""
  if band.far is None:
    return blocks
  return min(blocks, (size + band.far - band.near - 3) // other + 2)


def visited_ids(visits: Visits, most: int) -> jax.Array:
  """A range as −1-padded ids."""
  match visits:
    case Listed(ids_BIT):
      return ids_BIT
    case Range(first_BI, count_BI):
      t = jnp.arange(most)
      return jnp.where(t < count_BI[..., None], first_BI[..., None] + t, -1)


def tokens_of(ids_BLKT: jax.Array, size: int) -> jax.Array:
  """Lists of pages as lists of single places."""
  places = ids_BLKT[..., None] * size + jnp.arange(size)
  places = jnp.where(ids_BLKT[..., None] < 0, -1, places)
  return places.reshape(*ids_BLKT.shape[:3], -1)
