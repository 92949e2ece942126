"""Natively sparse attention (NSA, arXiv 2502.11089): summaries, chosen blocks, a window.

    y = W_o Σ_b σ(x W_gate)_b · attention(q, k_b, v_b),     b = summary, select, window
    k_summary[i] = rotate(φ(k[i·d … i·d + l − 1])),         v_summary[i] = φ'(v[i·d … i·d + l − 1])
    φ(x_0 … x_{l−1}) = mean(x) + silu([x_0 + e_0; …; x_{l−1} + e_{l−1}] W_in) W_out

Each branch has keys and values of its own, all share the queries. A query sees the summaries of
blocks that end at it or before; whole the blocks that the heads of its kv group choose together by
what they give to those summaries (selection.py); its window. φ is the paper's MLP over a block with
an embedding of the place inside; the mean beside it is ours, so that a fresh layer's summaries
stand for their blocks from the first step. Keys are summed up before they are rotated, and rotated
to the last position of their block: φ does not see where in a sequence a block stands.

Cost for a row of L, with l = compress, d = stride: 4·N·H·L·(L/2d + selected·select + window) flops,
2·N·H·L·L/d for the choice, 4·K·(L/d)·(l + 1)·H² to sum up; memory linear in L.

A cache keeps what the branches have of each token and the summary that ends in each stride, which
is made when it ends: a decoded token computes with M/d + selected·select + window keys of M. Of
pages it reads those alone (nsa_pool.py); dense memory, and what a chunk of a prompt meets, is
copied out of the stack before those few are taken.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.core.qarray import Weight
from r1jax.kernels.attention import attention
from r1jax.kernels.attention.blocks import banded_attention
from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import sees
from r1jax.kernels.matmul import matmul
from r1jax.kernels.selected import selected_attention
from r1jax.model import cache as caches
from r1jax.model import nsa_pool, pool, selection
from r1jax.model.cache import Blocked, KVCache
from r1jax.model.config import GQA, Blocks
from r1jax.model.gqa import projected
from r1jax.model.nsa_pool import Summarize
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.rope import rotate, softmax_scale
from r1jax.model.types import Kept, Place

FEW = 512  # queries up to which, over as many keys, a mask costs less than gathered blocks
BRANCHES = ('summary', 'select', 'window')


class Pair(NamedTuple):
  """Keys and values of one branch."""

  key_BMKH: jax.Array
  value_BMKH: jax.Array


class Pairs(NamedTuple):
  """Of all branches; raw: what is summed up, neither normed nor rotated."""

  raw: Pair
  select: Pair
  window: Pair


class Memory(NamedTuple):
  """What queries meet: of each branch its keys and where they stand.

  Summaries stand at the last token of their blocks. select: in whole pages. units_BU: the summary
  that ends in each stride of those pages.
  """

  summary: Pair
  ends: Tokens
  select: Pair
  paged: Tokens
  window: Pair
  tokens: Tokens
  units_BU: jax.Array


class Met(NamedTuple):
  """Where queries stand, the pages that they may choose, the memory."""

  queries: Tokens
  pages: selection.Range
  memory: Memory


class Phi(NamedTuple):
  """The weights of φ."""

  place_ZH: jax.Array
  in_IF: Weight
  out_FH: Weight


Parts = tuple[jax.Array, jax.Array, jax.Array]  # o_BLNH of each branch


class NativelySparseAttention(nn.Module):
  """GQA with Blocks, over the batch itself, or over the cache when one is given."""

  cfg: GQA

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    place: Place,
    cache: Blocked | None,
  ) -> tuple[jax.Array, Kept]:
    c, w = self.cfg, functools.partial(weight, self)
    (D, N), H, X = (x_BLD.shape[-1], c.heads), c.head, len(BRANCHES)
    norm = lambda name: norm_scale(self, f'{name}_scale', H) if c.qk_norm else None
    q_scale, *k_scales = (norm(name) for name in ('q', *(f'k_{b}' for b in BRANCHES)))
    phis = [self.phi(name) for name in ('key', 'value')]

    def turned(x_BMNH: jax.Array, scale: jax.Array | None, positions_BM: jax.Array) -> jax.Array:
      x_BMNH = x_BMNH if scale is None else rms_norm(x_BMNH, scale, c.eps)
      return rotate(x_BMNH, positions_BM, c.rotary)

    def summarize(raw: Pair, starts_BC: jax.Array, positions_BC: jax.Array) -> Pair:
      k_BCKH, v_BCKH = (summed_up(x, starts_BC, phi) for x, phi in zip(raw, phis))
      return Pair(turned(k_BCKH, k_scales[0], positions_BC), v_BCKH)

    at_BL = place.positions_BL
    q_BLNH = turned(projected(self, x_BLD, 'q', N, 'heads'), q_scale, at_BL)
    of_x = lambda name: projected(self, x_BLD, name, c.kv_heads, 'kv_heads')
    raw, *whole = (Pair(of_x(f'k_{b}'), of_x(f'v_{b}')) for b in BRANCHES)
    pairs = Pairs(raw, *(Pair(turned(k, s, at_BL), v) for (k, v), s in zip(whole, k_scales[1:])))
    cache, parts = attended(q_BLNH, cache, pairs, place, c, summarize)
    gate_BLNX = matmul('BLD,DNX->BLNX', x_BLD, w('gate', (D, N, X), ('embed', 'heads', None)))
    bias_NX = w('gate_bias', (N, X), ('heads', None), nn.initializers.zeros)
    gate_BLNX = jax.nn.sigmoid(gate_BLNX.astype('float32') + bias_NX).astype(x_BLD.dtype)
    o_BLNH = sum(gate_BLNX[..., i, None] * part for i, part in enumerate(parts))
    return matmul('BLNH,NHD->BLD', o_BLNH, w('out', (N, H, D), ('heads', 'head', 'embed'))), Kept(
      cache
    )

  def phi(self, name: str) -> Phi:
    """Declares φ of the keys or of the values."""
    w, H, Z = functools.partial(weight, self), self.cfg.head, self.cfg.pattern.compress
    return Phi(
      w(f'summary_{name}_bias', (Z, H), (None, 'head')),
      w(f'summary_{name}_in', (Z * H, H), (None, 'head')),
      w(f'summary_{name}_out', (H, H), ('head', None)),
    )


def attended(
  q_BLNH: jax.Array,
  cache: Blocked | None,
  pairs: Pairs,
  place: Place,
  c: GQA,
  summarize: Summarize,
) -> tuple[Blocked | None, Parts]:
  """The cache with the batch in it, if one is given, and what each branch makes of the queries."""
  scale, entries = softmax_scale(c.rotary, c.head), [KVCache(*pair) for pair in pairs]
  if cache is None:
    met = of_batch(pairs, place, c.pattern, summarize)
  elif pool.serves(cache, place, c.pattern):
    return nsa_pool.over_pool(q_BLNH, cache, entries, place, c.pattern, scale, summarize)
  else:
    cache, met = of_cache(cache, entries, place, c.pattern, summarize)
  return cache, branches(q_BLNH, met, c.pattern, scale)


def summed_up(x_BMKH: jax.Array, starts_BC: jax.Array, phi: Phi) -> jax.Array:
  """φ of the blocks that begin at these places; of zeros where those are beyond the memory."""
  Z = phi.place_ZH.shape[0]
  at_BS = rearrange(starts_BC[..., None] + jnp.arange(Z), 'B C Z -> B (C Z)')
  x_BSKH = jnp.take_along_axis(x_BMKH, at_BS[..., None, None], 1, mode='fill', fill_value=0)
  x_BCZKH = rearrange(x_BSKH, 'B (C Z) K H -> B C Z K H', Z=Z)
  placed_BCZKH = x_BCZKH + phi.place_ZH[:, None].astype(x_BMKH.dtype)
  x_BCKI = rearrange(placed_BCZKH, 'B C Z K H -> B C K (Z H)')
  h_BCKF = jax.nn.silu(matmul('BCKI,IF->BCKF', x_BCKI, phi.in_IF))
  return x_BCZKH.mean(2) + matmul('BCKF,FH->BCKH', h_BCKF, phi.out_FH)


def branches(q_BLNH: jax.Array, met: Met, pattern: Blocks, scale: float) -> Parts:
  """o_BLNH of the summaries, of the chosen blocks, of the window."""
  queries, pages, m = met
  few = 1 < q_BLNH.shape[1] <= FEW and m.paged.index_BM.shape[1] <= 2 * FEW

  def seen(pair: Pair, tokens: Tokens, band: Band) -> jax.Array:
    if few:
      return attention(q_BLNH, *pair, sees(queries, tokens, band), scale)
    return banded_attention(q_BLNH, *pair, queries, tokens, band, scale)[0]

  ids_BLKT = selection.choose(
    q_BLNH, m.summary[0], queries, m.ends, pages, m.units_BU, pattern, scale
  )
  listed = ids_BLKT, pattern.select, queries, m.paged
  name = 'reference' if few else None
  whole_BLNH, _ = selected_attention(q_BLNH, *m.select, *listed, scale, implementation=name)
  near_BLNH = seen(m.window, m.tokens, Band(0, pattern.window))
  return seen(m.summary, m.ends, Band()), whole_BLNH, near_BLNH


def of_batch(pairs: Pairs, place: Place, pattern: Blocks, summarize: Summarize) -> Met:
  """A batch meets itself; positions restart in each packed segment."""
  L, last = place.positions_BL.shape[1], pattern.compress - 1
  index_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), place.segments_BL.shape)
  here = Tokens(index_BL, place.segments_BL)
  take = functools.partial(jnp.take_along_axis, axis=1, mode='fill', fill_value=0)
  starts_BC = selection.starts(place.positions_BL, place.segments_BL, pattern)
  summary = summarize(pairs.raw, starts_BC, take(place.positions_BL, starts_BC) + last)
  ends = Tokens(starts_BC + last, take(place.segments_BL, starts_BC))
  laid = selection.layout(place.positions_BL, place.segments_BL, pattern.select)
  select = Pair(*(take(x, laid.token_BM[..., None, None]) for x in pairs.select))
  paged = Tokens(laid.token_BM, take(place.segments_BL, laid.token_BM))
  pages = selection.Range(
    (laid.place_BL - place.positions_BL) // pattern.select, laid.place_BL // pattern.select
  )
  units_BU = selection.by_unit(starts_BC, laid, pattern)
  return Met(here, pages, Memory(summary, ends, select, paged, pairs.window, here, units_BU))


def of_cache(
  cache: Blocked, new: list[KVCache], place: Place, pattern: Blocks, summarize: Summarize
) -> tuple[Blocked, Met]:
  """Rows meet what a cache holds of them, to which this adds their entries and summaries."""

  def one(kind: Any, place: Place, entries: KVCache) -> tuple[Any, caches.Held]:
    kind = caches.put(kind, place, entries)
    return kind, caches.look(kind, place, entries)

  kept, held = zip(*(one(kind, place, x) for kind, x in zip(cache, new)))
  raw, select, window = (Pair(*h.memory[:2]) for h in held)
  B, M = raw[0].shape[:2]
  at = selection.completed(place, pattern)
  past_BC = (at.positions_BL + 1) * pattern.stride
  starts_BC = jnp.where(at.segments_BL > 0, past_BC - pattern.compress, M)
  made = KVCache(*summarize(raw, starts_BC, past_BC - 1))
  strides, ended = one(cache.strides, at, made)
  ends = selection.stored(B, ended.memory[0].shape[1], pattern)
  # Nothing is ever written where no block ends yet, and 0 · NaN is no 0.
  written = lambda x_BUKH: jnp.where(ends.segments_BM[..., None, None] > 0, x_BUKH, 0)
  row = lambda x_M: jnp.broadcast_to(x_M.astype(jnp.int32), (B, len(x_M)))
  tokens = Tokens(row(jnp.arange(M)), row(jnp.ones(M)))
  fill = -M % pattern.select
  whole = lambda x_BM: jnp.pad(x_BM, ((0, 0), (0, fill), *((0, 0),) * (x_BM.ndim - 2)))
  select, paged = jax.tree.map(whole, (select, tokens))
  units_BU = row(jnp.arange((M + fill) // pattern.stride))  # those beyond `ends` count as none
  summary = Pair(*map(written, ended.memory[:2]))
  memory = Memory(summary, ends, select, paged, window, tokens, units_BU)
  own_BL = place.positions_BL // pattern.select
  here = Tokens(place.positions_BL, (place.segments_BL > 0).astype(jnp.int32))
  return Blocked(*kept, strides), Met(here, selection.Range(own_BL * 0, own_BL), memory)
