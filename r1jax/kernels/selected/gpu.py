"""Attention over listed pages in Mosaic GPU, for sm_90 (H100, H200).

    s = scale · q kᵀ,   p = exp(s − max s),   o = p v / Σ p,   lse = max s + log Σ p

A CUDA block serves one query and up to 64 heads of one kv head: those are the rows of wgmma. It
goes over the query's list in tiles of 64 places, which TMA copies by their ids into a ring of
stages. Values that lie in the keys are not copied again.

A warpgroup holds at most 256 columns of o. Where there are more (MLA), two warpgroups share the
work: each scores half of a tile's places, they tell each other their maxima and p through shared
memory, and each sums its half of the columns.

Pages of 64 places, or of a multiple, are copied from where they lie. TMA cannot gather single rows
on sm_90, and a row of a swizzled tile cannot be written alone: XLA gathers the places of `chunk`
queries side by side, and the same kernel reads these. That costs two more passes over the places
of each query, B·L·K·Z·(H + V) numbers each, and chunk·K·Z·(H + V) of memory.

Cost: 2·(H + V) flops a listed place and head, in rows of 64: four times that with a group of 16.
Widths are multiples of 64, V <= H. On a GPU none of this has run yet.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu import LOW
from r1jax.kernels.attention.gpu_tiles import (
  LOG2E,
  PRODUCER,
  ROWS,
  SHARED,
  STAGES,
  Ring,
  cost,
  launch,
  matmul,
  over,
  registers,
  release,
  ring,
)
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import over_chunks
from r1jax.kernels.selected import xla
from r1jax.kernels.selected.tpu import tokens_of

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
class Job:
  """What the body of a kernel knows when it is compiled."""

  length: int  # queries of a row
  heads: int  # K
  group: int  # query heads of a kv head, as laid out by `by_query`
  spans: tuple[Span, ...]
  parts: int  # warpgroups that share a tile
  stages: int
  shared: bool  # whether the values lie in the keys
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


class Store(NamedTuple):
  """Where the tiles lie that the queries list: X = B·L queries, J lists a query.

  tokens_B2M: index and segment, −1 for padding. A query goes over its first `count` tiles; those
  that are −1 hold nothing.
  """

  k_BMKH: jax.Array
  v_BMKV: jax.Array
  tokens_B2M: jax.Array
  ids_XJT: jax.Array
  count_XJ: jax.Array


def refuses(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  width: int,
  interpret: Any = False,
) -> str | None:
  """Why the kernel cannot serve these arrays; None if it can."""
  known = (jnp.bfloat16, jnp.float16) + ((jnp.float32,) if interpret else ())
  dtypes = sorted({str(x.dtype) for x in (q_BLNH, k_BMKH, v_BMKV) if x is not None})
  if len(dtypes) > 1 or q_BLNH.dtype not in known:
    return f'takes all bfloat16 or all float16, {", ".join(dtypes)} given'
  H = q_BLNH.shape[-1]
  if H % 64 or width % 64 or width > H or width > 2 * COLUMNS or H - width > COLUMNS:
    return (
      f'takes widths in multiples of 64, values up to {2 * COLUMNS} and keys as wide or up to '
      f'{COLUMNS} wider, {H} and {width} given'
    )
  bytes_ = memory(H, width, v_BMKV is None, q_BLNH.dtype.itemsize)
  if staged(*bytes_, parts_of(width)) is None:
    return f'takes {bytes_} bytes of shared memory at widths {H} and {width}, {SHARED} there are'
  return None


def memory(H: int, V: int, shared: bool, size: int) -> tuple[int, int]:
  """Bytes of shared memory that a block takes, and those of one stage."""
  parts = parts_of(V)
  mixing = (parts > 1) * ROWS * (size * TILE + 4 * parts)
  return ROWS * (size * H + 4) + mixing, TILE // parts * (size * (H + (not shared) * V) + 2 * 4)


def staged(fixed: int, stage: int, parts: int) -> int | None:
  """How many stages fit beside what is fixed; None if not one a warpgroup."""
  fit = min(STAGES, (SHARED - fixed) // stage)
  return fit if fit >= parts else None


def parts_of(columns: int) -> int:
  """Warpgroups that hold so many columns of sums."""
  return 1 if columns <= COLUMNS else 2


def spans(H: int, V: int, parts: int) -> tuple[Span, ...]:
  """The columns of the values in even parts, then the rest of the keys."""
  edges = [64 * (V // 64 * w // parts) for w in range(parts + 1)]
  cut = [Span(a, b - a, w, True) for w, (a, b) in enumerate(zip(edges, edges[1:])) if b > a]
  return (*cut, Span(V, H - V, parts - 1, False)) if H > V else tuple(cut)


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
  B, L, N = like_BLN.shape[:3]
  x_BLKG = rearrange(x_XN, '(B L) (K G) ... -> B L K G ...', B=B, K=K)[:, :, :, : N // K]
  return rearrange(x_BLKG, 'B L K G ... -> B L (K G) ...')


def stored(
  k_BMKH: jax.Array, v_BMKV: jax.Array | None, ids_BLJT: jax.Array, keys: Tokens, size: int
) -> Store:
  """The tiles that queries list: pages where they lie, or places gathered query by query."""
  if size % TILE:
    return _gathered(k_BMKH, v_BMKV, ids_BLJT, keys, size)
  return _store(k_BMKH, v_BMKV, keys, tiles_of(ids_BLJT, size // TILE))


def tiles_of(ids_BLJT: jax.Array, tiles: int) -> jax.Array:
  """Lists of pages as lists of their tiles."""
  return tokens_of(ids_BLJT, tiles)


def _store(k_BMKH, v_BMKV, keys: Tokens, ids_BLJT) -> Store:
  index_BM, segments_BM = keys
  tokens_B2M = jnp.stack((index_BM, jnp.where(segments_BM > 0, segments_BM, -1)), 1)
  ids_XJT = rearrange(ids_BLJT, 'B L J T -> (B L) J T')
  ends_T = 1 + jnp.arange(ids_XJT.shape[2], dtype=jnp.int32)
  count_XJ = jnp.where(ids_XJT >= 0, ends_T, 0).max(-1)
  v_BMKV = k_BMKH if v_BMKV is None else v_BMKV  # an operand that is not read
  return Store(k_BMKH, v_BMKV, tokens_B2M.astype(jnp.int32), ids_XJT, count_XJ)


def _gathered(k_BMKH, v_BMKV, ids_BCJT, keys: Tokens, size: int) -> Store:
  """Each query's places side by side, for each kv head in its turn."""
  (B, C), K = ids_BCJT.shape[:2], k_BMKH.shape[2]
  ids_BCJZ = tokens_of(ids_BCJT, size)
  ids_BCJZ = jnp.pad(ids_BCJZ, ((0, 0),) * 3 + ((0, -ids_BCJZ.shape[3] % TILE),), constant_values=-1)
  ids_BCKZ = jnp.broadcast_to(ids_BCJZ, (B, C, K, ids_BCJZ.shape[3]))
  row = lambda x: x if x is None else rearrange(xla.pages(x, ids_BCKZ, 1), 'B C K Z H -> B (C K Z) 1 H')
  at = jnp.maximum(ids_BCKZ, 0).reshape(B, -1)
  index_BM, segments_BM = (jnp.take_along_axis(jnp.asarray(x), at, axis=1) for x in keys)
  segments_BM = jnp.where(ids_BCKZ.reshape(B, -1) >= 0, segments_BM, 0)
  last_BCKT = rearrange(ids_BCKZ, 'B C K (T S) -> B C K T S', S=TILE).max(-1)
  here_CKT = jnp.arange(C * K * last_BCKT.shape[3], dtype=jnp.int32).reshape(last_BCKT.shape[1:])
  tiles_BCKT = jnp.where(last_BCKT >= 0, here_CKT, -1)
  return _store(row(k_BMKH), row(v_BMKV), Tokens(index_BM, segments_BM), tiles_BCKT)


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLJT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  size: int,
  scale: float,
  width: int,
  chunk: int,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); without v the value is the first `width` numbers of the key."""
  K, shared = k_BMKH.shape[2], v_BMKV is None

  def one(_: None, piece: tuple) -> tuple[None, tuple]:
    q_BCNH, ids_BCJT, here = piece
    store = stored(k_BMKH, v_BMKV, ids_BCJT, keys, size)
    return None, attend(q_BCNH, here, store, K, shared, scale, width, interpret)

  if size % TILE == 0:
    return one(None, (q_BLNH, ids_BLJT, queries))[1]
  return over_chunks(one, None, (q_BLNH, ids_BLJT, queries), chunk)[1]


def attend(
  q_BLNH: jax.Array,
  queries: Tokens,
  store: Store,
  K: int,
  shared: bool,
  scale: float,
  V: int,
  interpret: Any,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN) over stored tiles."""
  (B, L, N, H), size = q_BLNH.shape, q_BLNH.dtype.itemsize
  parts, group = parts_of(V), padded(N // K, 16)
  bytes_ = memory(H, V, shared, size)
  stages = staged(*bytes_, parts)
  job = Job(L, K, group, spans(H, V, parts), parts, stages, shared, scale, bool(interpret))
  like, shares = functools.partial(plgpu.SMEM, dtype=q_BLNH.dtype), parts if parts > 1 else 0
  run = launch(
    functools.partial(_forward, job=job),
    'selected_attention_forward',
    (
      jax.ShapeDtypeStruct((B * L, K * group, V), store.v_BMKV.dtype),
      jax.ShapeDtypeStruct((B * L, K * group), jnp.float32),
    ),
    (
      tuple(like((ROWS, span.width)) for span in job.spans),
      slots(job, H, V, q_BLNH.dtype),
      (
        (plgpu.SMEM((ROWS,), jnp.float32),) * shares,
        (like((ROWS, TILE // 2)),) * shares,
      ),
      plgpu.SMEM((ROWS,), jnp.float32),
      plgpu.Barrier(num_arrivals=len(job.spans)),
      ring(stages, 2 if shared else 3, parts),
      plgpu.Barrier(num_arrivals=parts, num_barriers=2),
    ),
    {'blocks': B * L * K * job.blocks},
    parts,
    cost(B * L * N * store.ids_XJT.shape[2] * TILE, H + V, (q_BLNH, store.k_BMKH, store.v_BMKV)),
    interpret,
  )
  o_XNV, lse_XN = run(by_query(q_BLNH, K, group), *store[:2], *beside(queries, store))
  return by_head(o_XNV, q_BLNH, K), by_head(lse_XN, q_BLNH, K)


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


def _forward(
  q, k, v, k_tokens, q_tokens, ids, count, o, lse,
  q_smems, slot_smems, mixing, lse_smem, ready, staging, met, *, job,
):  # fmt: skip
  """Up to 64 heads of one query."""
  x, kv, n = whose(job)
  wg, (_, lists) = lax.axis_index('warpgroup'), split(kv, ids.shape[1])
  steps, mine = count[x, lists], pl.ds(n, job.rows)
  tile = lambda t: ids[x, lists, t]

  def compute(w):
    registers(job.parts)
    if w == 0:
      fetch_heads(q.at[x, mine], q_smems, job.spans, job.rows, ready)
    plgpu.barrier_wait(ready)
    there = slot_smems, tile, (q_tokens[x, 0], q_tokens[x, 1])
    o_SV, lse_S = _attend(w, q_smems, there, mixing, staging, met, steps, job)
    q_smems[w][...] = o_SV.astype(o.dtype)
    if w == 0:
      lse_smem[...] = lse_S
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_smems[w].at[pl.ds(0, job.rows)], o.at[x, mine, job.spans[w].at])
    if w == 0:
      plgpu.copy_smem_to_gmem(lse_smem.at[pl.ds(0, job.rows)], lse.at[x, mine])
    plgpu.wait_smem_to_gmem(0)

  for w in range(job.parts):
    pl.when(wg == w)(functools.partial(compute, w))

  @pl.when(wg == job.parts)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    fill(k, v, k_tokens, tile, slot_smems, staging, x, kv, steps, job)


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
    plgpu.copy_gmem_to_smem(source.at[:, span.at], buffer.at[pl.ds(0, rows)], barrier)


def fill(k, v, k_tokens, tile, slot_smems, staging: Ring, x, kv, steps, job: Job) -> None:
  """Has TMA copy tile after tile, a warpgroup's part to a stage, once that is free."""
  (b, _), (_, head) = split(x, job.length), split(kv, k.shape[2])
  places, stages = TILE // job.parts, job.stages

  @pl.loop(0, steps * job.parts)
  def _fill(t):
    (_, slot), (step, part) = split(t, stages), split(t, job.parts)
    full = staging.full.at[slot]
    pl.when(t >= stages)(functools.partial(plgpu.barrier_wait, staging.free.at[slot]))
    at = pl.ds(jnp.maximum(tile(step), 0) * TILE + part * places, places)
    sources = (k.at[b, at, head], k_tokens.at[b, :, at])
    if not job.shared:
      sources = (sources[0], v.at[b, at, head], sources[1])
    for source, to in zip(sources, slot_smems):
      plgpu.copy_gmem_to_smem(source, to.at[slot], full)

  @pl.loop(jnp.maximum(steps * job.parts - stages, 0), steps * job.parts)
  def _drain(t):
    plgpu.barrier_wait(staging.free.at[split(t, stages)[1]])


def _attend(w, q_smems, there, mixing, staging, met, steps, job):
  """Online softmax of 64 heads over the listed tiles: the columns of warpgroup w, and lse_S."""
  (*arrays, tokens), tile, token = there
  k_smem, v_smem, mine = arrays[0], arrays[-1], job.spans[w]
  tops, probabilities = mixing

  def visit(t, kept):
    o_SV, total_S, top_S = kept
    here = stages_of(t, job)
    plgpu.barrier_wait(staging.full.at[here[w]])
    pairs = [(q, k_smem.at[here[w], :, span.at]) for q, span in zip(q_smems, job.spans)]
    s_SZ = matmul(*pairs, transposed=True, interpret=job.interpret) * (job.scale * LOG2E)
    s_SZ += over(unseen(tokens.at[here[w]], token, tile(t)), s_SZ.shape, 1)
    both = exchange(s_SZ.max(1), w, tops, met.at[0], job.parts)
    higher_S = functools.reduce(jnp.maximum, [x[...] for x in both], top_S)
    kept_S = jnp.exp2(top_S - higher_S)
    p_SZ = jnp.exp2(s_SZ - over(higher_S, s_SZ.shape, 0))
    total_S = total_S * kept_S + p_SZ.sum(1)
    o_SV = o_SV * over(kept_S, o_SV.shape, 0)
    both = exchange(p_SZ.astype(v_smem.dtype), w, probabilities, met.at[1], job.parts)
    others(w, here, staging)
    pairs = [(p, v_smem.at[slot, :, mine.at]) for p, slot in zip(both, here)]
    o_SV = matmul(*pairs, onto=o_SV, interpret=job.interpret)
    for slot in here:
      release(staging, slot)
    return o_SV, total_S, higher_S

  start = (
    jnp.zeros((ROWS, mine.width), jnp.float32),
    jnp.zeros(ROWS, jnp.float32),
    jnp.full(ROWS, LOW, jnp.float32),
  )
  o_SV, total_S, top_S = lax.fori_loop(0, steps, visit, start)
  total_S = sum(x[...] for x in exchange(total_S, w, tops, met.at[0], job.parts))
  some_S = jnp.where(total_S > 0, total_S, 1.0)
  lse_S = jnp.where(total_S > 0, top_S / LOG2E + jnp.log(some_S), -jnp.inf)
  return o_SV * over(1 / some_S, o_SV.shape, 0), lse_S


def stages_of(t: jax.Array, job: Job) -> list[jax.Array]:
  """Where the parts of tile t lie in the ring."""
  return [split(t * job.parts + w, job.stages)[1] for w in range(job.parts)]


def others(w: int, here: list[jax.Array], staging: Ring) -> None:
  """Waits for the parts of a tile that warpgroup w has not waited for."""
  for other, slot in enumerate(here):
    if other != w:
      plgpu.barrier_wait(staging.full.at[slot])


def unseen(tokens: Any, token: tuple[jax.Array, jax.Array], tile: jax.Array) -> jax.Array:
  """0 for the places of a tile that a query sees, −inf for others."""
  index, segment = token
  segment = jnp.where(tile < 0, 0, segment)  # keys have −1 for padding: none has 0
  return jnp.where((tokens[1] == segment) & (tokens[0] <= index), 0.0, -jnp.inf)


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
