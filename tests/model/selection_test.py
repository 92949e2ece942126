"""Where blocks lie and which are chosen, against loops that know one segment at a time."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.attention.lists import BEYOND, Tokens
from r1jax.model import selection
from r1jax.model.config import Blocks
from r1jax.model.types import Place

L, K, G, H = 40, 2, 2, 4
PATTERNS = [
  Blocks(compress=4, stride=2, select=4, selected=3, first=1, local=1, window=3),
  Blocks(compress=2, stride=2, select=8, selected=2, first=0, local=1, window=3),
  Blocks(compress=9, stride=3, select=6, selected=4, first=1, local=2, window=3),
  Blocks(compress=8, stride=2, select=4, selected=3, first=0, local=0, window=3),
]
PACKED = st.lists(st.integers(1, L), min_size=1, max_size=9).map(
  lambda n: n[: max(i for i in range(len(n) + 1) if sum(n[:i]) <= L)]
)
LAYOUT = jax.jit(selection.layout, static_argnums=2)
STARTS = jax.jit(selection.starts, static_argnums=2)


def row(lengths):
  """Positions and segments of one row."""
  positions = [p for n in lengths for p in range(n)]
  segments = [s + 1 for s, n in enumerate(lengths) for _ in range(n)]
  rest = L - len(positions)
  return np.int32([positions + [0] * rest]), np.int32([segments + [0] * rest])


@pytest.mark.parametrize('size', [3, 4, 16])
@hypothesis.given(lengths=PACKED)
@hypothesis.settings(max_examples=30)
def test_blocks_of_a_segment_are_pages_of_the_layout(size, lengths):
  token_M, place_L = (np.asarray(x[0]) for x in LAYOUT(*row(lengths), size))
  assert len(token_M) % size == 0 and len(token_M) < 2 * L + size
  np.testing.assert_array_equal(token_M[place_L], np.arange(L))
  assert np.sum(token_M < L) == L
  at = 0
  for n in lengths:
    pages, inside = np.divmod(place_L[at : at + n], size)
    if n > size:
      np.testing.assert_array_equal(pages - pages[0], np.arange(n) // size)
      np.testing.assert_array_equal(inside, np.arange(n) % size)
    assert n > size or np.ptp(pages) <= 1
    at += n


def begins(lengths, pattern):
  """The first tokens of the blocks that are summed up."""
  ends = np.cumsum(lengths, dtype=int)
  one = lambda n, end: range(end - n, end - pattern.compress + 1, pattern.stride)
  return [start for n, end in zip(lengths, ends) for start in one(n, end)]


def by_hand(q_LNH, k_CKH, lengths, pattern):
  """(score of each block of the segment, where it begins) by query and kv head."""
  found, at, starts = {}, 0, begins(lengths, pattern)
  d, l, size = pattern.stride, pattern.compress, pattern.select
  for n in lengths:
    slots = [c for c, start in enumerate(starts) if at <= start < at + n]
    for t, kv in np.ndindex(n, K):
      seen = [c for c in slots if starts[c] + l - 1 <= at + t]
      p_1C = np.zeros(n + size + l)  # from 1, as the paper counts
      for head in range(kv * G, (kv + 1) * G):
        e = np.exp(np.float64(k_CKH[seen, kv]) @ q_LNH[at + t, head] * 0.5)
        p_1C[1 : len(seen) + 1] += e / e.sum()
      score = [
        sum(
          p_1C[max(size // d * j - m - other, 0)]
          for m in range(size // d)
          for other in range(l // d)
        )
        for j in range(1, t // size + 2)
      ]
      found[at + t, kv] = score, at
    at += n
  return found


@functools.partial(jax.jit, static_argnames=('pattern', 'chunk'))
def chosen(q_BLNH, k_BCKH, positions_BL, segments_BL, pattern, chunk):
  """Ids of the pages, and where tokens lie."""
  index_BL = jnp.arange(L, dtype=jnp.int32)[None]
  starts_BC = selection.starts(positions_BL, segments_BL, pattern)
  laid = selection.layout(positions_BL, segments_BL, pattern.select)
  owner_BC = jnp.take_along_axis(segments_BL, starts_BC, 1, mode='fill', fill_value=0)
  ends = Tokens(starts_BC + pattern.compress - 1, owner_BC)
  first_BL = (laid.place_BL - positions_BL) // pattern.select
  pages = selection.Range(first_BL, laid.place_BL // pattern.select)
  units_BU = selection.by_unit(starts_BC, laid, pattern)
  told = q_BLNH, k_BCKH, Tokens(index_BL, segments_BL), ends, pages, units_BU
  return selection.choose(*told, pattern, 0.5, chunk), laid.place_BL


@pytest.mark.parametrize('pattern', PATTERNS)
@hypothesis.given(lengths=PACKED, seed=st.integers(0, 999), chunk=st.sampled_from([7, 64]))
@hypothesis.settings(max_examples=15)
def test_the_choice_is_the_best_of_the_paper_s_scores(pattern, lengths, seed, chunk):
  rng = np.random.default_rng(seed)
  C = max((L - pattern.compress) // pattern.stride + 1, 1)
  q_LNH, k_CKH = (rng.normal(size=s).astype('f4') for s in ((L, K * G, H), (C, K, H)))
  scores = by_hand(q_LNH, k_CKH, lengths, pattern)
  told = (x[None] for x in (q_LNH, k_CKH))
  ids_BLKT, place_BL = chosen(*told, *row(lengths), pattern=pattern, chunk=chunk)
  place_L = np.asarray(place_BL[0])
  for (t, kv), (score, at) in scores.items():
    own, last = (t - at) // pattern.select, len(score) - 1
    pages = [i for i in ids_BLKT[0, t, kv].tolist() if i >= 0]
    assert len(set(pages)) == len(pages)
    first = place_L[at] // pattern.select
    if last == 0:
      # A segment of one block may lie in two pages: all that it has up to the query is taken.
      assert {place_L[i] // pattern.select for i in range(at, t + 1)} <= set(pages)
      continue
    blocks = [page - first for page in pages]
    assert own == last and set(blocks) <= set(range(last + 1))
    assert len(blocks) == min(pattern.selected, last + 1)
    always = {j for j in range(last + 1) if j < pattern.first or j > last - pattern.local}
    assert always <= set(blocks)
    free = [score[j] for j in blocks if j not in always]
    rest = [score[j] for j in range(last + 1) if j not in blocks]
    assert not free or not rest or min(free) >= max(rest) - 1e-5


@pytest.mark.parametrize('pattern', PATTERNS)
@hypothesis.given(lengths=PACKED)
@hypothesis.settings(max_examples=15)
def test_what_is_summed_up_begins_every_stride_of_a_segment(pattern, lengths):
  want = begins(lengths, pattern)
  starts_C = STARTS(*row(lengths), pattern)[0].tolist()
  assert starts_C == want + [L] * (len(starts_C) - len(want))


def test_a_chunk_makes_the_summaries_that_it_may_have_completed():
  positions_BL = np.array([[5, 6, 7, 8, 9], [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])
  segments_BL = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]])
  at = selection.completed(Place(positions_BL, segments_BL), PATTERNS[0])
  np.testing.assert_array_equal(at.positions_BL, [[2, 3, 4], [BEYOND, BEYOND, 1], [BEYOND] * 3])
  np.testing.assert_array_equal(at.segments_BL, [[1, 1, 1], [0, 0, 1], [0, 0, 0]])


def test_a_cache_holds_no_summary_where_no_block_can_end():
  ends = selection.stored(2, 4, PATTERNS[2])
  np.testing.assert_array_equal(ends.index_BM, [[2, 5, 8, 11]] * 2)
  np.testing.assert_array_equal(ends.segments_BM, [[0, 0, 1, 1]] * 2)
