"""Block-sparse attention: the public function, its gradient, and which implementation runs.

    s = cap(scale · q kᵀ)   over the keys of the query's segment with near <= distance < far
    o = softmax(s) v,       lse = log Σ exp(s)

Branches over different keys merge by their lse (`merge`): a window, and key tokens gathered from
before it, give one softmax over the union. Both outputs carry gradients: with do and dlse,
ds = p · (v doᵀ − (Σ do·o − dlse)).

`xla` runs everywhere and is the default; `tpu` serves TPU v4 and later, `gpu` sm_90 (bfloat16 and
float16, widths that are multiples of 64), both unasked once they have run on hardware. On a mesh
rows and heads are split as sharding/rules.py has it (with fewer kv heads than devices, each has a
copy of the one that its query heads share), and queries over `context`, each with all keys: one
all-gather of keys and values, one reduction of their gradients.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.kernels import sizes as by_device
from r1jax.kernels.attention import gpu, gpu_backward, reference, tpu, xla
from r1jax.kernels.attention.lists import Band, Pass, Plan, Sizes, Tokens, banded, most_visited
from r1jax.kernels.chunks import vary_like
from r1jax.kernels.platform import chosen
from r1jax.sharding import rules

KNOWN = ('xla', 'tpu', 'gpu', 'reference')


class Blocks(NamedTuple):
  """Block sizes of the three passes."""

  forward: Sizes
  d_query: Sizes
  d_key_value: Sizes


class How(NamedTuple):
  """What does not change with the numbers; interpret: as the kernels take it."""

  band: Band
  scale: float
  soft_cap: float | None = None
  implementation: str = 'xla'
  interpret: Any = False


def banded_attention(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
  band: Band,
  scale: float,
  soft_cap: float | None = None,
  blocks: Blocks | None = None,
  implementation: str | None = None,
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, fp32 lse_BLN) of queries over keys; where a query sees nothing, 0 and −inf.

  q's heads are a multiple of k's. Indices of neighbouring queries differ by one, those of keys by
  one or more. Cost O(L · far); without `far` O(L · M) flops, but never that many scores.
  """
  check(q_BLNH, k_BMKH, v_BMKV, queries, keys)
  name = implementation_for(implementation)
  how = How(band, scale, soft_cap, name, interpret)
  L, N, M, K = *q_BLNH.shape[1:3], *k_BMKH.shape[1:3]
  blocks = blocks or blocks_of(name, band, N // K, L, M, q_BLNH.shape[3])
  run = functools.partial(_padded, how, blocks)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    k_BMKH, v_BMKV = spread(N, mesh, k_BMKH, v_BMKV)
    q, k, q_tokens, k_tokens = specs(q_BLNH, k_BMKH, mesh)
    run = jax.shard_map(run, in_specs=(q, k, k, q_tokens, k_tokens), out_specs=(q, jax.P(*q[:3])))
  return run(q_BLNH, k_BMKH, v_BMKV, queries, keys)


def merge(parts: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
  """One softmax over the union of disjoint parts (o_BLNV, lse_BLN), as if they had been one."""
  lse_PBLN = jnp.stack([lse for _, lse in parts])
  top_BLN = jax.lax.stop_gradient(lse_PBLN.max(0))
  top_BLN = jnp.where(top_BLN == -jnp.inf, 0, top_BLN)
  seen_PBLN = lse_PBLN > -jnp.inf
  w_PBLN = jnp.where(seen_PBLN, jnp.exp(jnp.where(seen_PBLN, lse_PBLN - top_BLN, 0)), 0)
  total_BLN = w_PBLN.sum(0)
  some_BLN = jnp.where(total_BLN == 0, 1, total_BLN)
  o_BLNV = sum(o * (w / some_BLN)[..., None] for (o, _), w in zip(parts, w_PBLN))
  lse_BLN = jnp.where(total_BLN == 0, -jnp.inf, top_BLN + jnp.log(some_BLN))
  return o_BLNV.astype(parts[0][0].dtype), lse_BLN


def check(
  q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array, queries: Tokens, keys: Tokens
) -> None:
  """Shapes that fit each other; the error names the axis."""
  (B, L, N, H), (_, M, K, _) = q_BLNH.shape, k_BMKH.shape
  wanted = {
    'k': (k_BMKH.shape, (B, M, K, H)),
    'v': (v_BMKV.shape[:3], (B, M, K)),
    'queries.index': (queries.index_BM.shape, (B, L)),
    'queries.segments': (queries.segments_BM.shape, (B, L)),
    'keys.index': (keys.index_BM.shape, (B, M)),
    'keys.segments': (keys.segments_BM.shape, (B, M)),
  }
  for name, (given, expected) in wanted.items():
    for axis, a, b in zip('BMKH' if name in 'kv' else ('B', 'length'), given, expected):
      if a != b:
        raise ValueError(f'{name}: axis {axis} is {a}, {b} expected beside q_BLNH {q_BLNH.shape}')
  if N % K:
    raise ValueError(f'{N} query heads are not a multiple of {K} key-value heads')


def implementation_for(name: str | None) -> str:
  """The one that is asked for; unasked, the device's kernels if those are proven, or XLA."""
  return chosen('attention', name, KNOWN)


def blocks_of(
  name: str, band: Band, group: int, length: int, memory: int, width: int, device: str | None = None
) -> Blocks:
  """Block sizes as measured on this kind of device, or by the rule; no greater than the lengths."""
  label = by_device.banded(name, band, group, width, length)
  found = by_device.measured(label, device)
  if found is None:
    return default_blocks(name, band, group, length, memory)
  least = 16 if name == 'xla' else 128
  fit = lambda size, n: min(size, max(least, 1 << (n - 1).bit_length()))
  pairs = zip(found[::2], found[1::2])
  return Blocks(*(Sizes(fit(query, length), fit(key, memory)) for query, key in pairs))


def default_blocks(name: str, band: Band, group: int, length: int, memory: int) -> Blocks:
  """The rule: block sizes by implementation and shape."""
  if name == 'gpu':
    return Blocks(*gpu.SIZES)
  if name == 'tpu':
    sizes = tpu.default_sizes(band, group, length, memory)
  else:
    fit = lambda size, n: min(size, 1 << max(n - 1, 15).bit_length())
    # On two CPU cores narrow windows run 1.3 times as fast and more by blocks of 64; elsewhere a
    # block should fill the device.
    far, small = (256, 64) if jax.default_backend() == 'cpu' else (128, 128)
    size = small if band.far is not None and band.far <= far else 256
    sizes = Sizes(fit(size, length), fit(size, memory))
  return Blocks(sizes, sizes, sizes)


def plan(queries: Tokens, keys: Tokens, band: Band, blocks: Blocks) -> Plan:
  """Which blocks visit which, a pass each; lengths are multiples of the block sizes."""
  L, M = queries.index_BM.shape[1], keys.index_BM.shape[1]

  def by_queries(sizes: Sizes) -> Pass:
    most = most_visited(band, sizes.query, sizes.key, M // sizes.key)
    return Pass(banded(queries, keys, band, sizes), sizes, most)

  def by_keys(sizes: Sizes) -> Pass:
    # Keys may lie far from each other: any number of queries may see a block of them.
    return Pass(banded(queries, keys, band, sizes, transposed=True), sizes, L // sizes.query)

  return Plan(by_queries(blocks.forward), by_queries(blocks.d_query), by_keys(blocks.d_key_value))


def specs(
  q_BLNH: jax.Array, k_BMKH: jax.Array, mesh: jax.sharding.AbstractMesh
) -> tuple[jax.P, jax.P, Tokens, Tokens]:
  """How queries, keys and both their tokens are split: heads only where kv heads can be, too."""
  q = rules.fitting(q_BLNH.shape, ('batch', 'length', 'heads', None), mesh)
  heads = rules.fitting(k_BMKH.shape, (None, None, 'kv_heads', None), mesh)[2]
  q = jax.P(q[0], q[1], heads, None)
  tokens = lambda *axes: Tokens(jax.P(*axes), jax.P(*axes))
  return q, jax.P(q[0], None, heads, None), tokens(q[0], q[1]), tokens(q[0], None)


def spread(N: int, mesh: jax.sharding.AbstractMesh, *by_kv_head: jax.Array) -> list[jax.Array]:
  """[B, M, K, …], kv heads repeated if that splits them: then each device has one."""
  copies = rules.kv_copies(N, by_kv_head[0].shape[2], mesh)
  return [jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in by_kv_head]


def _padded(
  how: How,
  blocks: Blocks,
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
) -> tuple[jax.Array, jax.Array]:
  """Lengths up to multiples of the blocks; what is added is padding."""
  L = q_BLNH.shape[1]
  # Keys that several devices share: each adds its part of their gradients.
  arrays = q_BLNH, k_BMKH, v_BMKV
  q_BLNH, k_BMKH, v_BMKV = vary_like(arrays, (arrays, queries, keys))

  def filled(tree: Any, size: int) -> Any:
    pad = lambda x: ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2)
    return jax.tree.map(lambda x: jnp.pad(x, pad(x)), tree)

  q_BLNH, queries = filled((q_BLNH, queries), math.lcm(*(s.query for s in blocks)))
  k_BMKH, v_BMKV, keys = filled((k_BMKH, v_BMKV, keys), math.lcm(*(s.key for s in blocks)))
  way = plan(queries, keys, how.band, blocks)
  made = block_attention(how, q_BLNH, k_BMKH, v_BMKV, queries, keys, way)
  return tuple(x[:, :L] for x in made)


def block_attention(
  how: How,
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array,
  queries: Tokens,
  keys: Tokens,
  way: Plan,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN) over the pairs of blocks that a plan visits; its sizes divide the lengths."""
  queries, keys, way = jax.tree.map(jnp.asarray, (queries, keys, way))
  if how.implementation == 'reference':
    by = how.band, way.forward, how.scale, how.soft_cap
    return reference.block_attention(q_BLNH, k_BMKH, v_BMKV, queries, keys, *by)
  return _attention(how, q_BLNH, k_BMKH, v_BMKV, queries, keys, way)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: How, q, k, v, queries: Tokens, keys: Tokens, way: Plan):
  """With a backward of its own."""
  if how.implementation == 'xla':
    return xla.forward(q, k, v, queries, keys, how.band, way.forward, how.scale, how.soft_cap)
  one = _kernel(how, {'tpu': tpu, 'gpu': gpu}[how.implementation], 'forward')
  return one(q, k, v, queries, keys, way=way.forward)


def _forward(how: How, q, k, v, queries, keys, way):
  o, lse = _attention(how, q, k, v, queries, keys, way)
  return (o, lse), (q, k, v, queries, keys, way, o, lse)


def _backward(how: How, kept, grads):
  q, k, v, queries, keys, way, o, lse = kept
  do, dlse = grads
  delta = jnp.einsum('BLNV,BLNV->BLN', do, o, preferred_element_type=lse.dtype) - dlse
  delta = jnp.where(lse > -jnp.inf, delta, 0)  # where nothing is seen dlse may be anything
  told = q, k, v, do, lse, delta, queries, keys
  if how.implementation == 'xla':
    grads = xla.backward(*told, how.band, way.d_query, how.scale, how.soft_cap)
  else:
    module = {'tpu': tpu, 'gpu': gpu_backward}[how.implementation]
    dq = _kernel(how, module, 'd_query')(*told, way=way.d_query)
    grads = dq, *_kernel(how, module, 'd_key_value')(*told, way=way.d_key_value)
  return *grads, None, None, None


_attention.defvjp(_forward, _backward)


def _kernel(how: How, module: ModuleType, name: str) -> Callable:
  """A kernel on what the three passes have in common."""

  def run(*told: Any, way: Pass) -> Any:
    by = way.visits, way.most, way.sizes, how.band, how.scale, how.soft_cap
    made = getattr(module, name)(*told, *by, interpret=how.interpret)
    return vary_like(made, told)  # Mosaic GPU's results carry no varying axes

  return run
