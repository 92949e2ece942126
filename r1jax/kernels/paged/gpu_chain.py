"""The warpgroups of a block of paged attention on GPUs, and what they share.

    producer   has TMA copy a stage's pages; of int8 pages turns them into the queries' dtype
    scores     s = q kᵀ, online softmax; hands on p and `kept`, by which all sums so far shrink
    values     o ← o · kept + p v, of some of the columns

A stage is free once all values warpgroups have used it: by then the scores have, too. p has one
buffer, given free as soon as it is in registers.

The interpreter of jax 0.10.2 knows no transposed references and no tiles: see `_turned`, `_staged`.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from r1jax.kernels.attention.gpu_tiles import (
  LOG2E,
  REGISTERS,
  ROWS,
  Ring,
  capped,
  matmul,
  over,
  produce,
  ring,
)

BOUNDS, SCALES = 32, 64  # numbers a stage: TMA writes to multiples of 128 bytes
SCORER, PRODUCER = 112, 64  # registers of a thread; warpgroups of values share the rest
LOW = -1e30  # below every score, but finite: LOW − LOW is 0


@dataclasses.dataclass(frozen=True)
class Job:
  """What the kernel knows when it is compiled.

  q lies in buffers of its own for each part of its columns: (key stack, first column there, width).
  The first ones are the columns of the values warpgroups, whose o leaves through them.
  """

  places: int  # of a stage
  copy: int  # places of a copy
  stages: int
  raw: int  # stages of int8 pages, 0 of others
  splits: int  # parts of a list
  blocks: int  # of 64 query heads, a kv head
  rows: int  # of 64 query heads, those that are written
  parts: tuple[tuple[int, int, int], ...]
  keys: tuple[int, ...]  # widths of the key stacks
  width: int
  own: bool  # values have a stack of their own
  scale: float
  soft_cap: float | None
  interpret: bool

  @property
  def columns(self) -> list[tuple[int, int]]:
    """(first, how many) columns of o of each values warpgroup."""
    share = self.parts[0][2]
    return [(first, share) for first in range(0, self.width, share)]

  @property
  def read(self) -> tuple[int, ...]:
    """Widths of all stacks, as they are read."""
    return (*self.keys, self.width) if self.own else self.keys

  @property
  def values(self) -> int:
    """The stack of the values."""
    return len(self.keys) if self.own else 0


class Buffers(NamedTuple):
  """Shared memory and barriers of a block."""

  q: tuple
  stages: tuple  # of each stack, [stages, places, width]
  raw: tuple  # the same in int8
  bounds: Any
  scales: Any
  p: Any
  kept: Any
  lse: Any
  ready: Any  # q is there
  staging: Ring
  copied: Any  # raw is there
  weights: Ring  # of p and kept


def buffers_of(dtype: jnp.dtype, scale: jnp.dtype | None, job: Job) -> Buffers:
  """Their types; scale: the dtype of int8's scales."""
  copies, consumers = len(job.read) * (job.places // job.copy), len(job.columns)
  scales = (job.stages, len(job.read), SCALES)
  vector = plgpu.SMEM((ROWS,), jnp.float32)
  return Buffers(
    q=tuple(plgpu.SMEM((ROWS, width), dtype) for _, _, width in job.parts),
    # wgmma takes no fewer places at once than such a tile is wide.
    stages=_staged(job.stages, dtype, job.places, job),
    raw=_staged(job.raw, jnp.dtype('int8'), 128, job) if job.raw else (),
    bounds=plgpu.SMEM((job.stages, BOUNDS), jnp.int32),
    scales=plgpu.SMEM(scales, scale) if job.raw else (),
    p=plgpu.SMEM((ROWS, job.places), dtype),
    kept=vector,
    lse=vector,
    ready=plgpu.Barrier(num_arrivals=len(job.parts)),
    staging=ring(job.stages, 3 if job.raw else 1 + copies, consumers),
    copied=plgpu.Barrier(num_arrivals=copies, num_barriers=max(1, job.raw)),
    weights=ring(1, 1, consumers),
  )


def _staged(count: int, dtype: jnp.dtype, widest: int, job: Job) -> tuple:
  """Stages of each stack, in tiles of eight places that are no wider than this."""
  made = []
  for width in job.read:
    tile = math.gcd(width, widest)
    tiles = plgpu.TilingTransform((8, tile)), plgpu.SwizzleTransform(tile * dtype.itemsize)
    tiles = () if job.interpret else tiles
    made.append(plgpu.SMEM((count, job.places, width), dtype, transforms=tiles))
  return tuple(made)


def attend(q, copies, bounds, span, *refs, job: Job) -> None:
  """Up to 64 query heads over a part of their row's list."""
  scales, pools = (refs[0], refs[1:-3]) if job.raw else (None, refs[:-3])
  o, lse, buffers = refs[-3:]
  b, part, x, wg = (lax.axis_index(name) for name in ('rows', 'splits', 'heads', 'warpgroup'))
  edge = lambda i: lax.div(i * span[b, 1], jnp.int32(job.splits))
  begin, steps = span[b, 0] + edge(part), edge(part + 1) - edge(part)
  consumers = len(job.columns)

  for i, (first, width) in enumerate(job.columns):

    @pl.when(wg == i)
    def _values(i=i, columns=pl.ds(first, width)):
      share = min(240, (REGISTERS - SCORER - PRODUCER) // consumers)
      plgpu.set_max_registers(share // 8 * 8, action='increase')
      buffers.q[i][...] = _weighted(columns, steps, buffers, job).astype(o.dtype)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(buffers.q[i].at[pl.ds(0, job.rows)], o.at[b, part, x, :, columns])
      plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == consumers)
  def _scores():
    plgpu.set_max_registers(SCORER, action='decrease')
    first = 0
    for to in buffers.q:
      plgpu.copy_gmem_to_smem(q.at[b, x, :, pl.ds(first, to.shape[1])], to, buffers.ready)
      first += to.shape[1]
    plgpu.barrier_wait(buffers.ready)
    buffers.lse[...] = _softmax(steps, buffers, job)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffers.lse, lse.at[b, part, x])
    plgpu.wait_smem_to_gmem(0)

  @pl.when(wg == consumers + 1)
  def _produce():
    plgpu.set_max_registers(PRODUCER, action='decrease')
    at = b, lax.div(x, jnp.int32(job.blocks)), begin
    _fill(copies, bounds, scales, pools, at, steps, buffers, job)


def _fill(copies, bounds, scales, pools, at, steps, buffers, job):
  """Fetches stage after stage of (row, kv head, first stage)."""
  b, kv, begin = at

  def beside(t, slot, full):
    plgpu.copy_gmem_to_smem(bounds.at[b, begin + t], buffers.bounds.at[slot], full)
    if job.raw:
      plgpu.copy_gmem_to_smem(scales.at[b, kv, begin + t], buffers.scales.at[slot], full)

  def pages(t, slot, full, into):
    for i in range(job.places // job.copy):
      places = pl.ds(copies[b, begin + t, i] * job.copy, job.copy)
      for pool, to, width in zip(pools, into, job.read):
        head = (kv,) if len(pool.shape) == 3 else ()
        here = to.at[slot, pl.ds(i * job.copy, job.copy)]
        plgpu.copy_gmem_to_smem(pool.at[(places, *head, pl.ds(0, width))], here, full)

  def both(t, slot, full):
    beside(t, slot, full)
    pages(t, slot, full, buffers.stages)

  ahead, copied = jnp.int32(job.raw), buffers.copied

  def converted(t, slot, full):
    beside(t, slot, full)
    raw = lax.rem(t, ahead)
    plgpu.barrier_wait(copied.at[raw])
    for source, to in zip(buffers.raw, buffers.stages):
      _turned(to.at[slot], job)[...] = _turned(source.at[raw], job)[...].astype(to.dtype)
    plgpu.commit_smem()
    plgpu.barrier_arrive(full)
    pl.when(t + ahead < steps)(lambda: pages(t + ahead, raw, copied.at[raw], buffers.raw))

  if job.raw:
    pl.loop(0, jnp.minimum(steps, ahead))(lambda t: pages(t, t, copied.at[t], buffers.raw))
  produce(steps, job.stages, [(buffers.staging, converted if job.raw else both)])


def _softmax(steps, buffers, job):
  """Online softmax of 64 query heads, handed on to the values; lse_S."""

  def hand_on(kept_S):
    buffers.kept[...] = kept_S
    plgpu.commit_smem()
    plgpu.barrier_arrive(buffers.weights.full)

  def visit(t, state):
    total_S, top_S = state
    slot = lax.rem(t, jnp.int32(job.stages))
    plgpu.barrier_wait(buffers.staging.full.at[slot])
    s_SZ = _masked(_scores(slot, buffers, job), slot, buffers, job)
    higher_S = jnp.maximum(top_S, s_SZ.max(1))
    kept_S = jnp.exp2(top_S - higher_S)
    p_SZ = jnp.exp2(s_SZ - over(higher_S, s_SZ.shape, 0))
    total_S = total_S * kept_S + p_SZ.sum(1)
    if job.raw:
      p_SZ *= _scale_of(job.values, slot, s_SZ.shape, buffers)
    pl.when(t > 0)(lambda: plgpu.barrier_wait(buffers.weights.free))
    buffers.p[...] = p_SZ.astype(buffers.p.dtype)
    hand_on(kept_S)
    return total_S, higher_S

  start = jnp.zeros(ROWS, jnp.float32), jnp.full(ROWS, LOW, jnp.float32)
  total_S, top_S = lax.fori_loop(0, steps, visit, start)
  seen_S = total_S > 0
  some_S = jnp.where(seen_S, total_S, 1.0)
  pl.when(steps > 0)(lambda: plgpu.barrier_wait(buffers.weights.free))
  hand_on(1 / some_S)
  return jnp.where(seen_S, top_S / LOG2E + jnp.log(some_S), -jnp.inf)


def _scores(slot, buffers, job):
  """s_SZ of a stage in powers of two, capped; of int8 each stack's product has its scales."""
  pairs = [[] for _ in job.keys]
  for q, (n, first, width) in zip(buffers.q, job.parts):
    pairs[n].append((q, buffers.stages[n].at[slot, :, pl.ds(first, width)]))
  product = functools.partial(matmul, transposed=True, interpret=job.interpret)
  if not job.raw:
    return capped(product(*(pair for some in pairs for pair in some)), job)[0]
  made = [product(*some) for some in pairs]
  made = [s_SZ * _scale_of(n, slot, s_SZ.shape, buffers) for n, s_SZ in enumerate(made)]
  return capped(sum(made[1:], made[0]), job)[0]


def _scale_of(n, slot, shape, buffers):
  """The scales of a stack's places, beside scores."""
  return over(buffers.scales[slot, n, pl.ds(0, shape[1])].astype(jnp.float32), shape, 1)


def _masked(s_SZ, slot, buffers, job):
  """−inf where a place is not seen; there values become 0, whatever lies there, NaN too.

  What int8 stands for is 0 there by its scales.
  """

  def mask(s_SZ):
    for first in range(0, 0 if job.raw else job.width, 64):
      part = _turned(buffers.stages[job.values].at[slot, :, pl.ds(first, 64)], job)
      seen = _seen_of(slot, part.shape, 0 if job.interpret else 1, buffers, job)
      part[...] = jnp.where(seen, part[...], 0)
    return jnp.where(_seen_of(slot, s_SZ.shape, 1, buffers, job), s_SZ, -jnp.inf)

  return lax.cond(buffers.bounds[slot, 0] > 0, lambda s_SZ: s_SZ, mask, s_SZ)


def _seen_of(slot, shape, axis, buffers, job):
  """Where the places along this axis are seen."""
  at, inside = lax.broadcasted_iota(jnp.int32, shape, axis), []
  for i in range(job.places // job.copy):
    bound = buffers.bounds[slot, 1 + i]
    low, high = bound & 0xFFFF, lax.shift_right_logical(bound, jnp.int32(16))
    inside += [(at >= i * job.copy + low) & (at < i * job.copy + high)]
  return functools.reduce(jnp.logical_or, inside)


def _turned(stage, job):
  """Places last, to load and store: registers that wgmma knows have 64 rows, a stage may not."""
  return stage if job.interpret else stage.transpose((1, 0))


def _weighted(columns, steps, buffers, job):
  """Σ p v / Σ p of a values warpgroup's columns."""
  weights, values = buffers.weights, buffers.stages[job.values]

  def visit(t, o_SV):
    slot = lax.rem(t, jnp.int32(job.stages))
    plgpu.barrier_wait(weights.full)
    p_SZ, kept_S = buffers.p[...], buffers.kept[...]
    plgpu.barrier_arrive(weights.free)
    o_SV = o_SV * over(kept_S, o_SV.shape, 0)
    o_SV = matmul((p_SZ, values.at[slot, :, columns]), onto=o_SV, interpret=job.interpret)
    plgpu.barrier_arrive(buffers.staging.free.at[slot])
    return o_SV

  o_SV = lax.fori_loop(0, steps, visit, jnp.zeros((ROWS, columns.size), jnp.float32))
  plgpu.barrier_wait(weights.full)
  return o_SV * over(buffers.kept[...], o_SV.shape, 0)
