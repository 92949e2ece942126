"""What the kernels of selected attention in Mosaic GPU share: where tiles lie, who sums what.

A CUDA block serves up to 64 heads of one query, or one tile that it lists: 64 places. Pages of
64, or of a multiple, are tiles where they lie. TMA cannot gather single rows on sm_90, and a row of
a swizzled tile cannot be written alone: XLA gathers the places of other pages query by query, and
the same kernels read these. That costs two more passes over the places of each query,
B·L·K·Z·(H + V) numbers each, and as many for the queries of a chunk in memory.

A warpgroup holds at most 256 columns of sums. Where there are more, two share the work: each makes
its half of the scores (half of the places or heads of a tile), hands it over in shared memory
(`exchange`) and sums its own columns.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu_tiles import ROWS, SHARED, STAGES, Ring, produce
from r1jax.kernels.attention.lists import Tokens, tokens_of
from r1jax.kernels.selected import xla

TILE = 64  # places of a tile
COLUMNS = 256  # of fp32 sums that a warpgroup holds: the N of wgmma, too


@dataclasses.dataclass(frozen=True)
class Span:
  """Columns of the keys that one warpgroup sums; the first ones are those of the values."""

  start: int
  width: int
  owner: int
  of_value: bool

  @property
  def at(self) -> Any:
    """As an index."""
    return pl.ds(self.start, self.width)


@dataclasses.dataclass(frozen=True)
class How:
  """What does not change with the numbers: kv heads, width of values, whether they lie in keys."""

  heads: int
  width: int
  shared: bool
  scale: float
  interpret: Any = False


@dataclasses.dataclass(frozen=True)
class Job:
  """What the body of a kernel knows when it is compiled."""

  length: int  # queries of a row
  heads: int  # K
  group: int  # query heads of a kv head, as laid out by `by_query`
  spans: tuple[Span, ...]
  parts: int  # warpgroups that share a tile
  stages: int
  shared: bool
  scale: float
  interpret: bool

  @property
  def rows(self) -> int:
    """Heads of a block."""
    return min(self.group, ROWS)

  @property
  def blocks(self) -> int:
    """Blocks of a kv head."""
    return self.group // self.rows

  @property
  def values(self) -> tuple[Span, ...]:
    """Columns of the values."""
    return tuple(span for span in self.spans if span.of_value)


def job_of(q_BLNH: jax.Array, how: How, group: int, parts: int, bytes_: tuple[int, int]) -> Job:
  """With as many stages as fit, of `bytes_` that are fixed and those of a stage."""
  (_, L, _, H), (fixed, stage) = q_BLNH.shape, bytes_
  stages, cut = min(STAGES, (SHARED - fixed) // stage), spans(H, how.width, parts)
  interpret = bool(how.interpret)
  return Job(L, how.heads, group, cut, parts, stages, how.shared, how.scale, interpret)


class Store(NamedTuple):
  """Where the tiles lie that the queries list: X = B·L queries, J lists a query.

  tokens_B2M: index and segment, −1 for padding. A query goes over its first `count` tiles; the id
  after the last, M / 64, stands for none.
  """

  k_BMKH: jax.Array
  v_BMKV: jax.Array
  tokens_B2M: jax.Array
  ids_XJT: jax.Array
  count_XJ: jax.Array


def lacking(bytes_: tuple[int, int], parts: int) -> str | None:
  """Why so many bytes, fixed and of a stage, do not fit into shared memory; None if they do."""
  fixed, stage = bytes_
  if fixed + parts * stage <= SHARED:
    return None
  return f'takes {fixed} + {parts}·{stage} bytes of shared memory, there are {SHARED}'


def parts_of(columns: int) -> int:
  """Warpgroups that hold so many columns of sums."""
  return 1 if columns <= COLUMNS else 2


def spans(H: int, V: int, parts: int) -> tuple[Span, ...]:
  """The columns of the values, then the rest of the keys, each in as even parts as can be."""

  def cut(start: int, stop: int, unit: int, of_value: bool) -> list[Span]:
    edges = [start + unit * ((stop - start) // unit * w // parts) for w in range(parts + 1)]
    ends = enumerate(itertools.pairwise(edges))
    return [Span(a, b - a, w, of_value) for w, (a, b) in ends if b > a]

  # Parts of a tile are 32 places or heads, so that swizzles are of 32 columns, too.
  return (*cut(0, V, 64, True), *cut(V, H, 64 // parts, False))


def padded(group: int, least: int) -> int:
  """Heads of a group as they are laid out: a multiple of `least`, or whole blocks."""
  least = least if group <= ROWS else ROWS
  return -(-group // least) * least


def by_query(x_BLN: jax.Array, K: int, group: int) -> jax.Array:
  """[B, L, N, …] as [B·L, K·group, …]: zeros where a group has fewer heads."""
  x_XKG = rearrange(x_BLN, 'B L (K G) ... -> (B L) K G ...', K=K)
  pad = ((0, 0), (0, 0), (0, group - x_XKG.shape[2])) + ((0, 0),) * (x_XKG.ndim - 3)
  return rearrange(jnp.pad(x_XKG, pad), 'X K G ... -> X (K G) ...')


def by_head(x_XN: jax.Array, like_BLN: jax.Array, K: int) -> jax.Array:
  """And back to [B, L, N, …]."""
  B, N = like_BLN.shape[0], like_BLN.shape[2]
  x_BLKG = rearrange(x_XN, '(B L) (K G) ... -> B L K G ...', B=B, K=K)[:, :, :, : N // K]
  return rearrange(x_BLKG, 'B L K G ... -> B L (K G) ...')


def stored(
  k_BMKH: jax.Array, v_BMKV: jax.Array | None, ids_BLJT: jax.Array, keys: Tokens, size: int
) -> Store:
  """The tiles that queries list: pages where they lie, or places gathered query by query."""
  if size % TILE:
    return _gathered(k_BMKH, v_BMKV, ids_BLJT, keys, size)
  return _store(k_BMKH, v_BMKV, keys, tokens_of(ids_BLJT, size // TILE))


def _store(k_BMKH, v_BMKV, keys: Tokens, ids_BLJT) -> Store:
  index_BM, segments_BM = keys
  tokens_B2M = jnp.stack((index_BM, jnp.where(segments_BM > 0, segments_BM, -1)), 1)
  ids_XJT = rearrange(ids_BLJT, 'B L J T -> (B L) J T')
  ends_T = 1 + jnp.arange(ids_XJT.shape[2], dtype=jnp.int32)
  count_XJ = jnp.where(ids_XJT >= 0, ends_T, 0).max(-1)
  ids_XJT = jnp.where(ids_XJT >= 0, ids_XJT, k_BMKH.shape[1] // TILE)
  v_BMKV = k_BMKH if v_BMKV is None else v_BMKV  # an operand that is not read
  return Store(k_BMKH, v_BMKV, tokens_B2M.astype(jnp.int32), ids_XJT, count_XJ)


def _gathered(k_BMKH, v_BMKV, ids_BCJT, keys: Tokens, size: int) -> Store:
  """Each query's places side by side, for each kv head in its turn."""
  (B, C), K = ids_BCJT.shape[:2], k_BMKH.shape[2]
  ids_BCJZ = tokens_of(ids_BCJT, size)
  ids_BCJZ = jnp.pad(
    ids_BCJZ, ((0, 0),) * 3 + ((0, -ids_BCJZ.shape[3] % TILE),), constant_values=-1
  )
  ids_BCKZ = jnp.broadcast_to(ids_BCJZ, (B, C, K, ids_BCJZ.shape[3]))
  row = lambda x: (
    x if x is None else rearrange(xla.pages(x, ids_BCKZ, 1), 'B C K Z H -> B (C K Z) 1 H')
  )
  at = jnp.maximum(ids_BCKZ, 0).reshape(B, -1)
  index_BM, segments_BM = (jnp.take_along_axis(jnp.asarray(x), at, axis=1) for x in keys)
  segments_BM = jnp.where(ids_BCKZ.reshape(B, -1) >= 0, segments_BM, 0)
  last_BCKT = rearrange(ids_BCKZ, 'B C K (T S) -> B C K T S', S=TILE).max(-1)
  here_CKT = jnp.arange(C * K * last_BCKT.shape[3], dtype=jnp.int32).reshape(last_BCKT.shape[1:])
  tiles_BCKT = jnp.where(last_BCKT >= 0, here_CKT, -1)
  return _store(row(k_BMKH), row(v_BMKV), Tokens(index_BM, segments_BM), tiles_BCKT)


def slots(job: Job, H: int, V: int, dtype: Any) -> tuple:
  """Stages of the ring: keys, values where they lie apart, tokens."""
  places = TILE // job.parts
  widths = (H,) if job.shared else (H, V)
  arrays = (plgpu.SMEM((job.stages, places, width), dtype) for width in widths)
  return (*arrays, plgpu.SMEM((job.stages, 2, places), jnp.int32))


def beside(queries: Tokens, store: Store) -> tuple[jax.Array, ...]:
  """What the kernels take beside the arrays: tokens of keys and queries, lists, counts."""
  q_tokens_X2 = jnp.stack([jnp.asarray(x).reshape(-1) for x in queries], 1).astype(jnp.int32)
  return store.tokens_B2M, q_tokens_X2, store.ids_XJT, store.count_XJ


def whose(job: Job) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Query, kv head and first head of this block; the blocks of a query lie side by side."""
  i, block = split(lax.axis_index('blocks'), job.blocks)
  x, kv = split(i, job.heads)
  return x, kv, kv * job.group + block * job.rows


def split(i: jax.Array, n: int) -> tuple[jax.Array, jax.Array | int]:
  """Quotient and remainder of what is not negative."""
  return (lax.div(i, jnp.int32(n)), lax.rem(i, jnp.int32(n))) if n > 1 else (i, 0)


def fetch_heads(source: Any, to: tuple, columns: tuple[Span, ...], rows: int, barrier: Any) -> None:
  """Copies the columns of some heads; rows beyond hold anything, and give what nobody reads."""
  for buffer, span in zip(to, columns):
    plgpu.copy_gmem_to_smem(source.at[:, span.at], buffer.at[0, pl.ds(0, rows)], barrier)


def fill(k, v, k_tokens, tile, slot_smems, staging: Ring, x, kv, steps, job: Job) -> None:
  """Has TMA copy the listed tiles, each warpgroup's part to a stage of its own."""
  (b, _), (_, head) = split(x, job.length), split(kv, k.shape[2])
  places = TILE // job.parts

  def fetch(t, slot, full):
    step, part = split(t, job.parts)
    at = pl.ds(place_of(tile(step), k) + part * places, places)
    stores = (k,) if job.shared else (k, v)
    sources = (*(x.at[b, at, head] for x in stores), k_tokens.at[b, :, at])
    for source, to in zip(sources, slot_smems):
      plgpu.copy_gmem_to_smem(source, to.at[slot], full)

  produce(steps * job.parts, job.stages, [(staging, fetch)])


def stages_of(t: jax.Array, job: Job) -> list[jax.Array]:
  """Where the parts of tile t lie in the ring."""
  return [split(t * job.parts + w, job.stages)[1] for w in range(job.parts)]


def others(w: int, here: list[jax.Array], staging: Ring) -> None:
  """Waits for the parts of a tile that warpgroup w has not waited for."""
  for other, slot in enumerate(here):
    if other != w:
      plgpu.barrier_wait(staging.full.at[slot])


def place_of(tile: jax.Array, k: Any) -> jax.Array:
  """Where a tile begins; none begins where the last does."""
  return jnp.minimum(tile, k.shape[1] // TILE - 1) * TILE


def unseen(tokens: Any, token: tuple[jax.Array, jax.Array], none: jax.Array) -> jax.Array:
  """0 for the places of a tile that a query sees, −inf for others, and for all of none."""
  index, segment = token
  segment = jnp.where(none, 0, segment)  # keys have −1 for padding: none has 0
  return jnp.where((tokens[1] == segment) & (tokens[0] <= index), 0.0, -jnp.inf)


def held(buffers: tuple, tile: jax.Array) -> list:
  """What a block keeps in shared memory, at an index of 0 that the compiler cannot know.

  It would keep the addresses of each wgmma's operand in registers, and where columns are many (MLA)
  spill them in each round.
  """
  zero = lax.shift_right_logical(tile, jnp.int32(31))  # a tile's id is not negative
  return [x.at[zero] for x in buffers]


def exchange(mine: jax.Array, w: int, buffers: tuple, met: Any, parts: int) -> tuple:
  """What each warpgroup has made, in shared memory; without that, what the only one has."""
  if not buffers:
    return (mine,)
  buffers[w][...] = mine
  plgpu.commit_smem()
  meet(met, parts)
  return buffers


def meet(met: Any, parts: int) -> None:
  """Waits until all that share a tile have come here."""
  if parts > 1:
    plgpu.barrier_arrive(met)
    plgpu.barrier_wait(met)
