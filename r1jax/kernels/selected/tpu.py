"""Attention over listed pages on TPU: pages are copied from HBM as they are listed, read once.

One step of the grid is one query, one kv head and `some pages` of its list, copied while the step
before is computed (tpu_pages.py). The softmax runs on over the steps of a list (m, l, o in VMEM).

Cost 2·B·L·N·Z·(H + V) flops and B·L·K·Z·(H + V) numbers read, Z = T·size, and one copy of the keys
where single tokens are listed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.selected import tpu_pages
from r1jax.kernels.selected.tpu_pages import LANES, Listed, Shape


def refuses(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array | None) -> str | None:
  """Why the kernels cannot serve these arrays; None if they can."""
  dtypes = {x.dtype for x in (q_BLNH, k_BMKH, v_BMKV) if x is not None}
  if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}:
    return f'takes bfloat16 or float32 alone, {", ".join(sorted(str(d) for d in dtypes))} given'
  return None


def forward(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLKT: jax.Array,
  queries: Tokens,
  keys: Tokens,
  size: int,
  scale: float,
  width: int,
  interpret=False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); without v the value is the first `width` numbers of the key."""
  B, L, N, _ = q_BLNH.shape
  split = 2 if L % 2 == 0 else 1
  arrays = (q_BLNH, k_BMKH, v_BMKV, ids_BLKT, queries, keys)
  shape, listed = tpu_pages.listed(*arrays, size, scale, width, split)
  o, lse = _call(shape, q_BLNH, listed, interpret)
  return o.reshape(B, L, N, -1)[..., :width], lse.reshape(B, L, N)


def _wide(s: Shape) -> int:
  """The width of the sums: whole lanes."""
  return -(-s.value // LANES) * LANES


def _call(shape: Shape, q_BLNH, listed: Listed, interpret):
  """The kernel: (o [R, L, K, G, V], lse [R, L, K, 1, G])."""
  s, stores, block = shape, listed.stores, tpu_pages.block
  lists, in_specs = tpu_pages.list_operands(s, listed)
  out = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q_BLNH).mat)
  return pl.pallas_call(
    functools.partial(_kernel, shape, len(stores)),
    grid=s.grid,
    in_specs=[*in_specs, block(s.group, s.key)] + [pl.BlockSpec(memory_space=pl.ANY)] * len(stores),
    out_specs=[block(s.group, _wide(s)), block(1, s.group)],
    out_shape=[
      out((*s.grid[:3], s.group, _wide(s)), q_BLNH.dtype),
      out((*s.grid[:3], 1, s.group), jnp.float32),
    ],
    scratch_shapes=[
      *tpu_pages.page_buffers(s, stores),
      pltpu.VMEM((s.group, 1), jnp.float32),
      pltpu.VMEM((s.group, 1), jnp.float32),
      pltpu.VMEM((s.group, _wide(s)), jnp.float32),
    ],
    compiler_params=tpu_pages.compiler_params(),
    cost_estimate=tpu_pages.cost(s, s.key + s.value, stores, 0, [q_BLNH, q_BLNH, *lists]),
    interpret=interpret,
  )(*lists, tpu_pages.in_rows(s, q_BLNH, s.heads, s.group, s.key), *stores)


def _kernel(shape: Shape, arrays: int, here_ref, next_ref, *refs):
  """One step: copy ahead, wait for this step's pages, go on with the softmax."""
  s = shape
  vector_ref, refs = (refs[0], refs[1:]) if s.size == 1 else (None, refs)
  q_ref, *refs = refs
  stores, (o_ref, lse_ref), refs = refs[:arrays], refs[arrays : arrays + 2], refs[arrays + 2 :]
  buffers, (semaphores, top_ref, total_ref, sum_ref) = refs[:arrays], refs[arrays:]

  @pl.when(pl.program_id(3) == 0)
  def _begin():
    top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
    total_ref[...] = jnp.zeros_like(total_ref)
    sum_ref[...] = jnp.zeros_like(sum_ref)

  pages = tpu_pages.next_pages(s, here_ref, next_ref, stores, buffers, semaphores)
  seen_1Z = tpu_pages.seen(s, here_ref, vector_ref)
  parts = [tpu_pages.columns(s, page) for page in pages]
  _attend(s, q_ref[0, 0, 0], parts[0], parts[-1], seen_1Z, top_ref, total_ref, sum_ref)

  @pl.when(pl.program_id(3) + 1 == s.steps)
  def _finish():
    total_G1 = total_ref[...]
    some_G1 = jnp.where(total_G1 == 0, 1, total_G1)
    o_ref[0, 0, 0] = (sum_ref[...] / some_G1).astype(o_ref.dtype)
    lse_G1 = jnp.where(total_G1 == 0, -jnp.inf, top_ref[...] + jnp.log(some_G1))
    lse_ref[0, 0, 0] = tpu_pages.as_row(lse_G1)


def _attend(s: Shape, q_GH, keys, values, seen_1Z, top_ref, total_ref, sum_ref):
  """Goes on with the softmax over the keys of one step."""
  s_GZ = jnp.where(seen_1Z, s.scale * tpu_pages.products(q_GH, keys, s.key), -jnp.inf)
  top_G1 = jnp.maximum(top_ref[...], s_GZ.max(-1, keepdims=True))
  base_G1 = jnp.where(top_G1 == -jnp.inf, 0, top_G1)
  p_GZ, kept_G1 = jnp.exp(s_GZ - base_G1), jnp.exp(top_ref[...] - base_G1)
  top_ref[...] = top_G1
  total_ref[...] = total_ref[...] * kept_G1 + p_GZ.sum(-1, keepdims=True)
  sum_ref[...] = sum_ref[...] * kept_G1
  tpu_pages.add_products(sum_ref, p_GZ.astype(q_GH.dtype), values, _wide(s))
