"""Gradients of attention over listed pages on TPU: one pass over the lists, as in the forward.

    s = scale · q kᵀ,   p = exp(s − lse),   ds = scale · p · (do vᵀ − delta)
    dq += ds k over a list's steps;   dk += dsᵀ q and dv += pᵀ do into rows of HBM

dk and dv are summed in HBM in fp32. A step reads the rows of its pages, adds, writes them back:
while s, p, ds and dq are computed, the writes of the step before end; while dsᵀ q and pᵀ do are,
the rows come. Nothing is added atomically, for only one step at a time has rows: a list names no
page twice, steps of a row follow each other, and each row of the grid, of which two cores may have
one each, has sums of its own. Where there is one row, its queries are split in two for those cores,
and there are two sums, added in the end. Repeated runs give the same bits.
What is listed as −1 adds zeros to the spare pages.

Beside this, contributions could be written side by side and scattered by XLA (they are written,
sorted, read, and their rows read and written again), or a list of queries by page could be made.
That one reads G·(H + V) numbers a pair of query and page rather than 2·size·(H + V): much less for
pages of 64, much more for single tokens, and scores are computed twice.

Cost 2·B·L·N·Z·(3H + 2V) flops. Moved: B·L·K·Z·(H + V) numbers of the keys, and of the sums in fp32
twice as many (without v, H). Memory: the stored keys, and the sums once or twice.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import vary_like
from r1jax.kernels.selected import tpu_pages
from r1jax.kernels.selected.tpu_pages import LANES, Listed, Shape


def backward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLKT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  do_BLNV: jax.Array,
  lse_BLN: jax.Array,
  delta_BLN: jax.Array,
  size: int,
  scale: float,
  width: int,
  interpret=False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """(dq, dk, dv) in the inputs' dtypes, summed in fp32; dv is in dk where v is in k."""
  (B, L, N, H), M = q_BLNH.shape, k_BMKH.shape[1]
  split = 2 if B % 2 and L % 2 == 0 else 1
  arrays = (q_BLNH, k_BMKH, v_BMKV, ids_BLKT, queries, keys)
  s, listed = tpu_pages.listed(*arrays, size, scale, width, split)
  seen_BLN = lse_BLN > -jnp.inf
  zeroed = [jnp.where(seen_BLN, x, 0).astype(jnp.float32) for x in (lse_BLN, delta_BLN)]
  split_heads = lambda x: rearrange(x, 'B L (K G) -> B L K G', G=s.group)
  per_query = jnp.stack([split_heads(x) for x in zeroed], axis=3)
  dq, *sums = _call(s, q_BLNH, do_BLNV.astype(q_BLNH.dtype), per_query, listed, interpret)
  grads = []
  for x_RKPSW, x_BMKH in zip(sums, [x for x in (k_BMKH, v_BMKV) if x is not None]):
    x_RKPSW = x_RKPSW[:, :, : M // s.size, :, : x_BMKH.shape[-1]]
    x_BKPSH = rearrange(x_RKPSW, '(B c) ... -> B c ...', c=split).sum(1)
    grads.append(rearrange(x_BKPSH, 'B K P S H -> B (P S) K H').astype(x_BMKH.dtype))
  return dq.reshape(B, L, N, H), grads[0], grads[1] if v_BMKV is not None else None


def _wide(width: int) -> int:
  """In whole lanes."""
  return -(-width // LANES) * LANES


def _call(shape: Shape, q_BLNH, do_BLNV, per_query, listed: Listed, interpret):
  """The kernel: dq [R, L, K, G, H], and sums [R, K, P + spare, size, W] for each of the stores."""
  s, stores, block = shape, listed.stores, tpu_pages.block
  rows = functools.partial(tpu_pages.in_rows, s)
  lists, in_specs = tpu_pages.list_operands(s, listed)
  here = [
    rows(q_BLNH, s.heads, s.group, s.key),
    rows(do_BLNV, s.heads, s.group, s.value),
    rows(per_query, s.heads, 2, s.group),
  ]
  widths = [_wide(width) for width in (s.key, s.value)[: len(stores)]]
  of_step = [(s.pages, s.size, w) for w in widths]
  sums = [
    jnp.zeros((s.rows, s.heads, x.shape[2], *of[1:]), jnp.float32) for x, of in zip(stores, of_step)
  ]
  inputs = [*lists, *here, *stores, *vary_like(sums, q_BLNH)]
  anywhere, in_hbm = pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pltpu.HBM)
  out = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q_BLNH).mat)
  return pl.pallas_call(
    functools.partial(_kernel, shape, len(stores)),
    grid=s.grid,
    in_specs=[
      *in_specs,
      *(block(*x.shape[3:]) for x in here),
      *[anywhere] * len(stores),
      *[in_hbm] * len(sums),
    ],
    out_specs=[block(s.group, s.key)] + [in_hbm] * len(sums),
    out_shape=[out(here[0].shape, q_BLNH.dtype)] + [out(x.shape, x.dtype) for x in sums],
    input_output_aliases={len(inputs) - len(sums) + i: 1 + i for i in range(len(sums))},
    scratch_shapes=[
      *tpu_pages.page_buffers(s, stores),
      *(pltpu.VMEM(of, jnp.float32) for of in of_step),
      pltpu.SemaphoreType.DMA((2, len(stores))),
      pltpu.VMEM((s.group, _wide(s.key)), jnp.float32),
      *(pltpu.VMEM((s.group, widths[i]), q_BLNH.dtype) for i in (0, -1)),
    ],
    compiler_params=tpu_pages.compiler_params(),
    cost_estimate=tpu_pages.cost(
      s, 3 * s.key + 2 * s.value, stores, 2 * 4 * sum(widths), [*lists, *here, here[0]]
    ),
    interpret=interpret,
    name='selected_attention_backward',
  )(*inputs)


def _kernel(shape: Shape, arrays: int, here_ref, next_ref, *refs):
  """One step: its pages' scores and dq, then dk and dv into their rows."""
  s = shape
  vector_ref, refs = (refs[0], refs[1:]) if s.size == 1 else (None, refs)
  (q_ref, do_ref, per_query_ref), refs = refs[:3], refs[3:]
  # The sums as inputs are the sums as outputs: the same memory.
  stores, (dq_ref, *sums), refs = (
    refs[:arrays], refs[2 * arrays : 3 * arrays + 1], refs[3 * arrays + 1 :]
  )  # fmt: skip
  buffers, copied, refs = refs[:arrays], refs[arrays], refs[arrays + 1 :]
  added, (moved, dq_sum_ref, *wide) = refs[:arrays], refs[arrays:]
  step, (r, _, k, c) = tpu_pages.step_of(s), [pl.program_id(axis) for axis in range(4)]

  @pl.when(c == 0)
  def _begin():
    dq_sum_ref[...] = jnp.zeros_like(dq_sum_ref)
    for ref, whole_ref in zip((q_ref, do_ref), wide):
      whole_ref[...] = jnp.zeros_like(whole_ref)
      whole_ref[:, : ref.shape[-1]] = ref[0, 0, 0]

  pages = tpu_pages.next_pages(s, here_ref, next_ref, stores, buffers, copied)
  q_GH, do_GV, per_query_2G = (ref[0, 0, 0] for ref in (q_ref, do_ref, per_query_ref))
  parts = [tpu_pages.columns(s, page) for page in pages]
  seen_1Z = tpu_pages.seen(s, here_ref, vector_ref)
  p_GZ, ds_GZ = _scores(s, q_GH, do_GV, per_query_2G, parts[0], parts[-1], seen_1Z)
  p_GZ, ds_GZ = p_GZ.astype(q_GH.dtype), ds_GZ.astype(q_GH.dtype)
  tpu_pages.add_products(dq_sum_ref, ds_GZ, parts[0], s.key)

  @pl.when(step > 0)
  def _written():
    _wait(added, moved, 1)

  _move(s, sums, added, moved, here_ref, 0, r, k, c)
  dk_ZW, dv_ZW = (tpu_pages.dot(x, ref[...], 0, 0) for x, ref in zip((ds_GZ, p_GZ), wide))
  _wait(added, moved, 0)
  for ref, more_ZW in zip(added, (dk_ZW, dv_ZW) if arrays == 2 else (dk_ZW + dv_ZW,)):
    ref[...] += more_ZW.reshape(ref.shape)
  _move(s, sums, added, moved, here_ref, 1, r, k, c)

  @pl.when(c + 1 == s.steps)
  def _finish():
    dq_ref[0, 0, 0] = dq_sum_ref[:, : s.key].astype(dq_ref.dtype)

  @pl.when(step + 1 == s.length * s.heads * s.steps)
  def _end():
    _wait(added, moved, 1)


def _scores(s: Shape, q_GH, do_GV, per_query_2G, keys, values, seen_1Z):
  """Probabilities and the gradient of the scores before their scale, [G, Z]."""
  lse_G1, delta_G1 = (tpu_pages.as_column(per_query_2G[i : i + 1]) for i in (0, 1))
  s_GZ = jnp.where(seen_1Z, s.scale * tpu_pages.products(q_GH, keys, s.key), -jnp.inf)
  p_GZ = jnp.exp(s_GZ - lse_G1)
  dp_GZ = tpu_pages.products(do_GV, values, s.value)
  return p_GZ, s.scale * p_GZ * (dp_GZ - delta_G1)


def _move(s: Shape, sums, added, moved, lists_ref, back: int, r, k, c):
  """Starts to copy the rows of a step's pages from the sums, or back to them."""

  def one(t, page):
    for i, (in_memory, here) in enumerate(zip(sums, added)):
      ends = in_memory.at[r, k, page], here.at[t]
      pltpu.make_async_copy(*(reversed(ends) if back else ends), moved.at[back, i]).start()

  tpu_pages.each_page(s, lists_ref, k, c, one)


def _wait(added, moved, back: int):
  """Waits for all of these copies."""
  for i, here in enumerate(added):
    tpu_pages.wait(here, moved.at[back, i])
