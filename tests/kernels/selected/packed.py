"""Packed rows, queries among them and lists of pages, for the tests of the TPU kernels."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from r1jax.kernels.attention.lists import Tokens

B, L, M, N, K, SCALE = 2, 10, 64, 4, 2, 0.2
LENGTHS = st.lists(
  st.lists(st.integers(1, 24), min_size=1, max_size=5).filter(lambda row: sum(row) <= M),
  min_size=B, max_size=B,
)  # fmt: skip

# Of a page, lists, pages listed, widths of keys and values, whether values lie in the keys, dtype.
CASES = {
  'tokens, half words': (1, 1, 20, 200, 136, True, 'bfloat16'),
  'tokens, whole words': (1, 1, 20, 200, 136, True, 'float32'),
  'tokens of each head': (1, K, 7, 64, 64, False, 'float32'),
  'pages as tokens': (4, 1, 5, 64, 64, False, 'bfloat16'),
  'pages': (8, K, 3, 192, 128, False, 'float32'),
  'pages that hold values': (16, 1, 3, 192, 128, True, 'bfloat16'),
}


def draw(seed, H, V, dtype=np.float32):
  """q, k and v."""
  rng = np.random.default_rng(seed)
  shapes = ((B, L, N, H), (B, M, K, H), (B, M, K, V))
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def keys_of(lengths):
  """Keys of rows packed with segments of these lengths, the rest padding."""
  segments = [[s + 1 for s, n in enumerate(row) for _ in range(n)] for row in lengths]
  segments = [row + [0] * (M - len(row)) for row in segments]
  segments_BM = np.int32(segments)
  return Tokens(np.where(segments_BM > 0, np.arange(M, dtype=np.int32), 0), segments_BM)


def some(keys, seed):
  """Queries at some of the keys' places."""
  rng = np.random.default_rng(seed)
  at = np.sort(rng.choice(M, L, replace=False))
  return Tokens(*(x[:, at] for x in keys))


def lists(seed, size, heads, T):
  """Random pages, some of them −1, and a query whose list is empty."""
  rng = np.random.default_rng(seed)
  every = np.tile(np.arange(M // size, dtype=np.int32), (B, L, heads, 1))
  ids = rng.permuted(every, axis=-1)[..., :T]
  ids[rng.random(ids.shape) < 0.2] = -1
  ids[1, 5] = -1
  return ids
