"""What layers take and give, typed; None where absent, so that it all threads through scan."""

from typing import NamedTuple

import jax


class Place(NamedTuple):
  """Where tokens stand. Positions restart in each packed segment; segment 0 is padding."""

  positions_BL: jax.Array
  segments_BL: jax.Array
  layer: jax.Array | None = None  # index into the run's stacked cache
  table_BT: jax.Array | None = None  # ids of each row's pages in order; −1 where it has none
  slots_B: jax.Array | None = None  # each row's slot of the rings; None: row b's is b
  listed_BL: jax.Array | None = None  # whether the token is one of ModelConfig.key_ids


class Term(NamedTuple):
  """A loss term before its division: the denominator is taken over the whole global batch."""

  total: jax.Array
  weight: jax.Array


class Choices(NamedTuple):
  """What a layer chose for each token, to be replayed: experts [B, L, A], keys [B, L, T].

  A key is its position in the sequence + 1; 0 is none, so that zeros are choices not yet known.
  """

  experts: jax.Array | None = None
  keys: jax.Array | None = None


class LayerIn(NamedTuple):
  """Beside x: this block's stacked cache, and choices to replay."""

  cache: tuple | None = None
  routes: Choices | None = None


class Kept(NamedTuple):
  """Beside y, what attention gives: the cache, the keys chosen, what its indexer is to learn."""

  cache: tuple | None = None
  keys_BLT: jax.Array | None = None
  index: Term | None = None


class LayerOut(NamedTuple):
  """Beside x: the cache, the choices, load of the experts, terms of sequence balance and indexer.

  stream_BLD: x itself, where blocks run as a stack, whose inner ones nobody else would see.
  """

  cache: tuple | None = None
  routes: Choices = Choices()
  load_E: jax.Array | None = None
  balance: Term | None = None
  index: Term | None = None
  stream_BLD: jax.Array | None = None
