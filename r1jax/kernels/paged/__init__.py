"""Decode attention over a pool of pages: one query a row, over the places that its row lists.

    s = cap(scale · q·k),   lse = log Σ exp(s),   o = Σ exp(s − lse) v

Full attention, a window, a ring and pinned tokens are lists (`Visible`); calls over disjoint lists
merge by their lse. The memory is whole stacks as the cache holds them, and the layer is picked
where they are read: nothing of the pool's size is copied. int8 is read as it is, a scale a vector.

Cost: 2·N·(H + V) flops and K·(H + V) numbers read a place (MLA: H numbers), and the same of the
places of a page that are not seen. `xla` writes and reads what it gathers once more, a chunk at a
time; `tpu` and `gpu` (sm_90) copy pages straight into the kernel's memory, for those who ask until
they have run on their hardware (platform.PROVEN).

On a mesh each device has its rows and their pages, as in model/cache.py, and its heads.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.paged import gpu, reference, tpu, xla
from r1jax.kernels.paged.memory import Int8, Memory, Stack, memory_of, numbers
from r1jax.kernels.paged.visible import Visible
from r1jax.kernels.platform import chosen, resolve
from r1jax.sharding import rules
from r1jax.sharding.place import check_rows

PAGED = {'tpu': tpu, 'gpu': gpu, 'xla': xla, 'reference': reference}
REFUSALS = {'tpu': tpu.refusal, 'gpu': gpu.refusal}
SELECTED = {'xla': xla, 'reference': reference}


def paged_attention(
  q_BNH: jax.Array,
  keys: Stack | tuple[Stack, ...],
  values: Stack | tuple[Stack] | None,
  layer: jax.Array,
  visible: Visible,
  scale: float,
  value_width: int | None = None,
  soft_cap: float | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BNV, fp32 lse_BN) over the listed pages; a row that sees nothing gives 0 and −inf.

  keys: one stack, or several that side by side make the key; the last may be wider than the query
  needs. values None: the first `value_width` numbers of the (first) key stack.
  """
  memory = memory_of(keys, values, q_BNH.shape[-1], value_width)
  _check(q_BNH, memory, visible.pages_BT)
  kind = chosen('paged', implementation, tuple(PAGED))

  def run(q_BNH: jax.Array, memory: Memory, *lists: Any) -> tuple[jax.Array, jax.Array]:
    why = kind in REFUSALS and REFUSALS[kind](q_BNH, memory)  # of the heads that one device has
    if why and implementation:
      raise NotImplementedError(f'paged attention on {kind}: {why}')
    return PAGED['xla' if why else kind].paged_attention(q_BNH, memory, *lists, scale, soft_cap)

  return _on_shards(run, q_BNH, memory, layer, visible)


def selected_rows(
  q_BNH: jax.Array,
  keys: Stack | tuple[Stack, ...],
  values: Stack | tuple[Stack] | None,
  layer: jax.Array,
  ids: jax.Array,
  scale: float,
  value_width: int | None = None,
  soft_cap: float | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same over single places (top-k tokens): ids page·S + place, −1 where there is none.

  ids: a list a row, [B, T], or one for each of its key-value heads, [B, K, T].
  """
  memory = memory_of(keys, values, q_BNH.shape[-1], value_width)
  _check(q_BNH, memory, ids)
  kind = resolve(implementation, {'*': 'xla'}, tuple(SELECTED))
  run = functools.partial(SELECTED[kind].selected_rows, scale=scale, soft_cap=soft_cap)
  run = run if ids.ndim == 2 else functools.partial(_by_head, run)
  return _on_shards(run, q_BNH, memory, layer, ids)


def _by_head(
  run: Callable, q_BNH: jax.Array, memory: Memory, layer: jax.Array, ids_BKT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Every head of a row as a row of its own, of the queries in its group."""
  B, K, _ = ids_BKT.shape
  if K == 1:
    return run(q_BNH, memory, layer, ids_BKT[:, 0])
  q_RGH = rearrange(q_BNH, 'B (K G) H -> (B K) G H', K=K)
  ids_RT = rearrange(ids_BKT, 'B K T -> (B K) T')
  o_RGV, lse_RG = run(q_RGH, memory, layer, ids_RT, head_B=jnp.tile(jnp.arange(K), B))
  o_BNV = rearrange(o_RGV, '(B K) G V -> B (K G) V', K=K)
  return o_BNV, rearrange(lse_RG, '(B K) G -> B (K G)', K=K)


def _check(q_BNH: jax.Array, memory: Memory, list_BT: jax.Array) -> None:
  """Heads and rows fit; the error names what does not."""
  B, N, _ = q_BNH.shape
  if N % memory.heads:
    raise ValueError(f'{N} query heads are not a multiple of {memory.heads} key-value heads')
  if len(list_BT) != B:
    raise ValueError(f'{B} queries and lists of {len(list_BT)} rows; one list a query')
  if list_BT.ndim == 3 and list_BT.shape[1] != memory.heads:
    raise ValueError(
      f'{list_BT.shape[1]} lists a row; expected one for each of {memory.heads} key-value heads'
    )


def _on_shards(
  run: Callable, q_BNH: jax.Array, memory: Memory, layer: jax.Array, lists: Visible | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Over the mesh in context: each device its rows, whose lists count from its first page."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(q_BNH, memory, layer, lists)
  check_rows(mesh, len(q_BNH))
  rows, kv = rules.spec(('batch',), rules.ACTIVATIONS)[0], None
  heads = rules.fitting(q_BNH.shape, (None, 'heads', None), mesh)[1]
  if numbers(memory.keys[0]).ndim == 5:
    # Query heads are where their key-value heads are; where these stay whole, so do those.
    kv = rules.fitting((memory.heads,), ('kv_heads',), mesh)[0]
    heads = None if kv is None else heads

  def specs(stack: Stack) -> Stack:
    lead = (None, rows, None, kv)[: numbers(stack).ndim - 1]  # a vector's axis has no name
    return jax.tree.map(lambda _: jax.P(*lead), stack)

  pool = jax.tree.map(specs, memory, is_leaf=lambda s: isinstance(s, Int8))
  listed = jax.tree.map(lambda x: jax.P(rows, kv) if x.ndim == 3 else jax.P(rows), lists)
  # The loops start from constants, which are the same on every device; what they end with is not.
  mapped = jax.shard_map(
    run,
    in_specs=(jax.P(rows, heads), pool, jax.P(), listed),
    out_specs=(jax.P(rows, heads), jax.P(rows, heads)),
    check_vma=False,
  )
  return mapped(q_BNH, memory, layer, lists)
