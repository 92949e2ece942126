"""Attention in which every query has its own list of pages of keys.

    s = scale · q kᵀ   over the keys of listed pages that a query sees
    o = softmax(s) v,  lse = log Σ exp(s)          2·B·L·N·T·size·(H + V) flops

A page is `size` consecutive places of the memory: single tokens (size 1) as DeepSeek-V3.2's top-k
(arXiv 2512.02556) or blocks as NSA's selection (64, arXiv 2502.11089). Lists come by kv head, or
one for all. Of a page a query sees the keys of its segment up to its own index. Both outputs carry
gradients: lse's enters as ds = p · (dp − (Σ do·o − dlse)), so that branches merge. Work and memory
are linear in L and in T·size; the backward touches listed pages only. Kernels serve those who ask
until they have run on their hardware (platform.PROVEN).

On a mesh rows, heads and queries are split as in sharding/rules.py, with all keys of its rows and
heads on each device: one all-gather of the keys, one reduce-scatter of their gradients.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from r1jax.kernels import sizes
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import vary_like
from r1jax.kernels.platform import chosen
from r1jax.kernels.selected import gpu, gpu_backward, reference, tpu, tpu_backward, xla
from r1jax.sharding import rules

KNOWN = ('tpu', 'gpu', 'xla', 'reference')
CHUNKS = {'gpu': 256}  # queries at a time, 32 elsewhere


@dataclasses.dataclass(frozen=True)
class Static:
  """What is known when the program is compiled."""

  size: int
  scale: float
  width: int
  chunk: int
  implementation: str


def selected_attention(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKV: jax.Array | None,
  ids_BLKT: jax.Array,
  size: int,
  queries: Tokens,
  keys: Tokens,
  scale: float,
  value_width: int | None = None,
  chunk: int | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN) over listed pages; a query that sees nothing gives 0 and −inf.

  ids_BLKT: page ids 0 … M / size − 1, −1 is none, none twice; K kv heads, or 1 list for all.
  v_BMKV None: the value is the first value_width numbers of the key (absorbed MLA).
  chunk: queries that XLA handles or gathers for at a time; by default as measured, or CHUNKS.
  """
  check(q_BLNH, k_BMKH, v_BMKV, ids_BLKT, size, queries, keys, value_width)
  width = v_BMKV.shape[-1] if value_width is None else value_width
  implementation = serving(implementation, q_BLNH, k_BMKH, v_BMKV, width)
  if implementation == 'reference':
    v_BMKV = k_BMKH[..., :width] if v_BMKV is None else v_BMKV
    return reference.selected_attention(
      q_BLNH, k_BMKH, v_BMKV, ids_BLKT, size, queries, keys, scale
    )
  if chunk is None:
    places = ids_BLKT.shape[3] * size
    rule = CHUNKS.get(implementation, 32)
    chunk = sizes.chunk(rule, 'selected', page=size, places=places, heads=q_BLNH.shape[2])
  run = functools.partial(_attention, Static(size, scale, width, chunk, implementation))
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(q_BLNH, k_BMKH, v_BMKV, ids_BLKT, queries, keys)
  return _on_shards(run, mesh, q_BLNH, k_BMKH, v_BMKV, ids_BLKT, queries, keys)


def serving(
  asked: str | None, q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKV: jax.Array | None, width: int
) -> str:
  """The implementation that is asked for, or else the device's; XLA where that refuses."""
  name = chosen('selected', asked, KNOWN)
  refused = None
  if name == 'tpu':
    refused = tpu.refuses(q_BLNH, k_BMKH, v_BMKV)
  elif name == 'gpu':
    refused = gpu.refuses(q_BLNH, k_BMKH, v_BMKV, width)
  if refused and asked:
    raise NotImplementedError(f'the {name.upper()} kernel of selected attention {refused}; use xla')
  return 'xla' if refused else name


def check(q_BLNH, k_BMKH, v_BMKV, ids_BLKT, size, queries, keys, value_width) -> None:
  """Shapes that fit each other; the error names the array."""
  (B, L, N, H), (_, M, K, _) = q_BLNH.shape, k_BMKH.shape
  wanted = {
    'k_BMKH': (k_BMKH.shape, (B, M, K, H)),
    'ids_BLKT': (ids_BLKT.shape[:2], (B, L)),
    'queries': (queries.segments_BM.shape, (B, L)),
    'keys': (keys.segments_BM.shape, (B, M)),
  }
  if v_BMKV is not None:
    wanted['v_BMKV'] = (v_BMKV.shape[:3], (B, M, K))
  for name, (given, expected) in wanted.items():
    if given != expected:
      raise ValueError(f'{name} is {given}, {expected} expected beside q_BLNH {q_BLNH.shape}')
  if N % K:
    raise ValueError(f'{N} query heads are not a multiple of {K} key-value heads')
  if ids_BLKT.shape[2] not in (1, K):
    raise ValueError(
      f'ids_BLKT has {ids_BLKT.shape[2]} lists a query; 1 or {K} (kv heads) expected'
    )
  if M % size:
    raise ValueError(f'{M} keys are no whole pages of {size}; pad them with segment 0')
  if (v_BMKV is None) == (value_width is None):
    raise ValueError('give v_BMKV, or None for it and value_width')


def _on_shards(run, mesh, q, k, v, ids, queries, keys):
  """Each device its rows, queries and heads; keys that all heads share are on every device."""
  copies, shared = rules.kv_copies(q.shape[2], k.shape[2], mesh), k.shape[2] == 1
  if copies > 1 and not shared:
    spread = lambda x: x if x is None or x.shape[2] == 1 else jnp.repeat(x, copies, axis=2)
    k, v, ids = spread(k), spread(v), spread(ids)
  kv_heads = rules.fitting(k.shape, (None, None, 'kv_heads', None), mesh)[2]
  kv_heads = None if shared else kv_heads
  heads = 'heads' if shared or kv_heads else None
  of_q = rules.fitting(q.shape, ('batch', 'length', heads, None), mesh)
  of_k = jax.P(of_q[0], None, kv_heads, None)
  of_ids = jax.P(*of_q[:2], kv_heads if ids.shape[2] > 1 else None, None)
  tokens = lambda p: Tokens(jax.P(*p[:2]), jax.P(*p[:2]))

  def local(q, *rest):
    # So that gradients of what several devices hold are summed over these.
    return run(q, *vary_like(rest, q))

  local = jax.shard_map(
    local,
    in_specs=(of_q, of_k, of_k, of_ids, tokens(of_q), tokens(of_k)),
    out_specs=(of_q, jax.P(*of_q[:3])),
  )
  return local(q, k, v, ids, queries, keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, q, k, v, ids, queries: Tokens, keys: Tokens):
  s = static
  if s.implementation == 'tpu':
    return tpu.forward(q, k, v, ids, queries, keys, s.size, s.scale, s.width)
  told = q, k, v, ids, queries, keys
  if s.implementation == 'gpu':
    made = gpu.forward(*told, s.size, s.scale, s.width, s.chunk)
    return vary_like(made, told)  # Mosaic GPU's results carry no varying axes
  return xla.forward(*told, s.size, s.scale, s.width, s.chunk)


def _forward(static, q, k, v, ids, queries, keys):
  o, lse = _attention(static, q, k, v, ids, queries, keys)
  return (o, lse), (q, k, v, ids, queries, keys, o, lse)


def _backward(static, kept, cotangents):
  *inputs, o, lse = kept
  do, dlse = cotangents
  delta_BLN = jnp.einsum('BLNV,BLNV->BLN', do, o, preferred_element_type=lse.dtype) - dlse
  s, told = static, (*inputs, do, lse, delta_BLN)
  if s.implementation == 'tpu':
    grads = tpu_backward.backward(*told, s.size, s.scale, s.width)
  elif s.implementation == 'gpu' and not gpu_backward.refuses(*inputs[:3], s.width):
    grads = vary_like(gpu_backward.backward(*told, s.size, s.scale, s.width, s.chunk), told)
  else:
    grads = xla.backward(*told, s.size, s.scale, s.width, s.chunk)
  return *grads, None, None, None


_attention.defvjp(_forward, _backward)
