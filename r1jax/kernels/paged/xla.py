"""Decode attention over pages in XLA: chunks of the listed pages, one after the other.

    m, l, o ← online softmax over chunks of about CHUNK places;   o / l,   lse = m + log l

Only what is listed is gathered, straight out of the whole stack, and the loop ends with the longest
row of the batch. Cost: 2·N·(H + V) flops a place, read and written once more by the gather; memory
B·CHUNK·K·(H + V) numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.paged.memory import Memory, gather, in_pool
from r1jax.kernels.paged.visible import Visible, filled, padded, seen
from r1jax.kernels.platform import sums

CHUNK = 1024


class Part(NamedTuple):
  """Indices into the stacks behind the layer's, and which of the places are seen."""

  at: tuple[jax.Array, ...]
  seen_BM: jax.Array


def paged_attention(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  visible: Visible,
  scale: float,
  soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BNV, lse_BN); a row that sees nothing gives 0 and −inf."""
  pages = min(visible.pages_BT.shape[1], max(1, CHUNK // memory.size))
  visible = padded(visible, pages)

  def part(c: jax.Array) -> Part:
    here = Visible(*(chunk(x, c, pages) for x in visible))
    return Part((in_pool(here.pages_BT, memory),), seen(here, memory.size))

  count = chunks(filled(visible), pages)
  return over_chunks(grouped(q_BNH, memory.heads), memory, layer, part, count, scale, soft_cap)


def selected_rows(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  ids_BT: jax.Array,
  scale: float,
  soft_cap: float | None = None,
  head_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same over single places, page·S + place, −1 where there is none.

  head_B: the key-value head that all queries of a row read; None: each that of its group.
  """
  places = min(ids_BT.shape[1], CHUNK)
  ids_BT = jnp.pad(ids_BT, ((0, 0), (0, -ids_BT.shape[1] % places)), constant_values=-1)

  def part(c: jax.Array) -> Part:
    here_BT = chunk(ids_BT, c, places)
    at = in_pool(here_BT // memory.size, memory), here_BT % memory.size
    return Part(at if head_B is None else (*at, head_B[:, None]), here_BT >= 0)

  count = chunks(ids_BT >= 0, places)
  q_BKGH = grouped(q_BNH, memory.heads if head_B is None else 1)
  return over_chunks(q_BKGH, memory, layer, part, count, scale, soft_cap)


def grouped(q_BNH: jax.Array, heads: int) -> jax.Array:
  """Queries by the key-value head that they read, q_BKGH."""
  return rearrange(q_BNH, 'B (K G) H -> B K G H', K=heads)


def chunk(x_BT: jax.Array, c: jax.Array, width: int) -> jax.Array:
  """Columns of chunk c."""
  return jax.lax.dynamic_slice_in_dim(x_BT, c * width, width, 1)


def chunks(filled_BT: jax.Array, width: int) -> jax.Array:
  """How many chunks there are up to the last that holds anything of any row."""
  last_T = jnp.where(filled_BT.any(0), jnp.arange(filled_BT.shape[1]) // width + 1, 0)
  return last_T.max()


def over_chunks(
  q_BKGH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  part: Callable[[jax.Array], Part],
  count: jax.Array,
  scale: float,
  soft_cap: float | None,
) -> tuple[jax.Array, jax.Array]:
  """Attention over parts 0 … count − 1."""
  dtype = sums(q_BKGH)

  def visit(c: jax.Array, state: tuple) -> tuple:
    top_BKG, total_BKG, o_BKGV = state
    at, seen_BM = part(c)
    s_BKGM, first = scores(q_BKGH, memory, (layer, *at), scale, soft_cap)
    s_BKGM = jnp.where(seen_BM[:, None, None], s_BKGM, -jnp.inf)
    higher_BKG = jnp.maximum(top_BKG, s_BKGM.max(-1))
    base_BKG = jnp.where(higher_BKG == -jnp.inf, 0, higher_BKG)
    p_BKGM, kept_BKG = jnp.exp(s_BKGM - base_BKG[..., None]), jnp.exp(top_BKG - base_BKG)
    o_BKGV *= kept_BKG[..., None]
    o_BKGV += weighted(p_BKGM, memory, (layer, *at), first, seen_BM, q_BKGH.dtype)
    return higher_BKG, total_BKG * kept_BKG + p_BKGM.sum(-1), o_BKGV

  shape = q_BKGH.shape[:-1]
  zeros = jnp.zeros((*shape, memory.width), dtype)
  start = jnp.full(shape, -jnp.inf, dtype), zeros[..., 0], zeros
  top_BKG, total_BKG, o_BKGV = jax.lax.fori_loop(0, count, visit, start)
  o_BKGV /= jnp.where(total_BKG == 0, 1, total_BKG)[..., None]
  o_BNV = rearrange(o_BKGV, 'B K G V -> B (K G) V').astype(q_BKGH.dtype)
  return o_BNV, rearrange(top_BKG + jnp.log(total_BKG), 'B K G -> B (K G)')


def scores(
  q_BKGH: jax.Array, memory: Memory, at: tuple, scale: float, soft_cap: float | None
) -> tuple[jax.Array, tuple]:
  """s_BKGM over all parts of the keys, and what was read of the first."""
  s_BKGM, start, read = 0, 0, []
  for stack, width in zip(memory.keys, memory.widths):
    x_BMKW, scale_BMK = gather(stack, at, width, q_BKGH.dtype)
    q_BKGW, start = q_BKGH[..., start : start + width], start + width
    part_BKGM = jnp.einsum('BKGW,BMKW->BKGM', q_BKGW, x_BMKW, preferred_element_type=sums(q_BKGH))
    s_BKGM += part_BKGM if scale_BMK is None else part_BKGM * by_head(scale_BMK)
    read.append((x_BMKW, scale_BMK))
  s_BKGM *= scale
  return s_BKGM if soft_cap is None else soft_cap * jnp.tanh(s_BKGM / soft_cap), read[0]


def weighted(
  p_BKGM: jax.Array, memory: Memory, at: tuple, first: tuple, seen_BM: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  """p v; values that are not seen count as 0, whatever lies there, NaN too."""
  v_BMKV, scale_BMK = first
  if memory.values is not None:
    v_BMKV, scale_BMK = gather(memory.values, at, memory.width, dtype)
  v_BMKV = jnp.where(seen_BM[..., None, None], v_BMKV[..., : memory.width], 0)
  if scale_BMK is not None:
    p_BKGM *= jnp.where(seen_BM[:, None, None], by_head(scale_BMK), 0)
  return jnp.einsum(
    'BKGM,BMKV->BKGV', p_BKGM.astype(dtype), v_BMKV, preferred_element_type=p_BKGM.dtype
  )


def by_head(scale_BMK: jax.Array) -> jax.Array:
  """Scales beside scores, [B, K, 1, M]."""
  return rearrange(scale_BMK, 'B M K -> B K 1 M')
