"""Dense causal attention of a sequence over itself, from libraries on the devices that have them.

    o = softmax(cap(scale · q kᵀ)) v    over the keys of the query's segment up to its own index

    splash    Pallas kernels that come with jax, TPU v4 and later: packed rows, any widths
    cudnn     flash attention of cuDNN, NVIDIA GPUs from Ampere on: bfloat16 and float16
    the rest  `banded_attention` with the band open, which runs everywhere

Cost: B·N·L²·(H + V) flops, memory O(L) and (L/block)² small integers of splash's. A library serves
those who ask by name, and unasked once it is in `platform.PROVEN`. No log-sum-exp comes back: cuDNN
rounds it to the inputs' dtype, splash's carries no gradient; who merges takes `banded_attention`.
(tokamax refuses TPU v4, and elsewhere on TPU it is splash again.)

cuDNN knows causal rows, not packed ones. Which rows are packed is known only when they run: a batch
with one packed row in it takes the block by block path, chosen on the device.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention

from r1jax.kernels import platform, sizes
from r1jax.kernels.attention import blocks
from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.platform import kernels
from r1jax.sharding import rules

LIBRARIES = ('splash', 'cudnn')
KNOWN = (*LIBRARIES, *blocks.KNOWN)
LANES = 128
SCALARS = 2**19  # bytes of scalar memory for splash's block tables: half of what a TPU has

# What cuDNN's attention runs on, and the widest head there.
CUDNN = (
  (r'(NVIDIA )?G?(H|B)\d+', 256),  # Hopper and later
  (r'(NVIDIA )?(A\d+|L\d+|RTX A\d+|GeForce RTX [345]\d)', 128),  # Ampere, Ada
)


@dataclasses.dataclass(frozen=True)
class Case:
  """What decides who can serve; split: a row's queries lie on several devices."""

  length: int
  width: int
  value_width: int
  dtype: str
  soft_cap: float | None = None
  split: bool = False


def dense_attention(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKV: jax.Array,
  tokens: Tokens,
  scale: float,
  soft_cap: float | None = None,
  implementation: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """o_BLNV; padding gives 0. q's heads are a multiple of k's; `interpret` is splash's, for CPU."""
  blocks.check(q_BLNH, k_BLKH, v_BLKV, tokens, tokens)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    k_BLKH, v_BLKV = blocks.spread(q_BLNH.shape[2], mesh, k_BLKH, v_BLKV)
    q, k, where, _ = blocks.specs(q_BLNH, k_BLKH, mesh)
  split = not mesh.empty and rules.axis_size(q[1], dict(mesh.shape)) > 1
  widths = q_BLNH.shape[3], v_BLKV.shape[3]
  case = Case(q_BLNH.shape[1], *widths, str(q_BLNH.dtype), soft_cap, split)
  name = choose(implementation, jax.devices()[0].device_kind, case)

  def by_blocks(q_BLNH, k_BLKH, v_BLKV):
    told = Band(), scale, soft_cap, None, None if name in LIBRARIES else name
    return blocks.banded_attention(q_BLNH, k_BLKH, v_BLKV, tokens, tokens, *told)[0]

  if name not in LIBRARIES:
    return by_blocks(q_BLNH, k_BLKH, v_BLKV)
  if name == 'splash':
    run = functools.partial(splash, scale=scale, soft_cap=soft_cap, interpret=interpret)
  else:
    run = functools.partial(cudnn, scale=scale)
  if not mesh.empty:
    # Neither library says over which axes its results vary.
    run = jax.shard_map(run, in_specs=(q, k, k, where.segments_BM), out_specs=q, check_vma=False)
  library = lambda *qkv: run(*qkv, tokens.segments_BM)
  if name == 'splash':
    return library(q_BLNH, k_BLKH, v_BLKV)
  return jax.lax.cond(alone(tokens.segments_BM), library, by_blocks, q_BLNH, k_BLKH, v_BLKV)


def choose(implementation: str | None, kind: str, case: Case) -> str:
  """The one that is asked for; unasked the proven library that the device has, or by blocks."""
  if implementation is None:
    served = (
      x for x in LIBRARIES if ('dense', x) in platform.PROVEN and not refusal(x, case, kind)
    )
    return next(served, None) or blocks.implementation_for(None)
  if implementation not in KNOWN:
    raise NotImplementedError(
      f'no implementation {implementation!r} of dense attention; known: {", ".join(KNOWN)}'
    )
  why = implementation in LIBRARIES and refusal(implementation, case)
  if why:
    raise NotImplementedError(f'{implementation} {why}; use xla')
  return implementation


def refusal(name: str, case: Case, kind: str | None = None) -> str | None:
  """Why a library does not serve a case, or None; without a device, on the best of its devices."""
  if case.split:
    return 'takes whole rows, and their queries are split over the mesh axis context'
  if name == 'splash':
    return _splash_refusal(case, kind)
  widest = next((n for pattern, n in CUDNN if kind is None or re.match(pattern, kind)), None)
  if widest is None:
    return f'runs on NVIDIA GPUs from Ampere on, not on {kind}'
  if case.dtype not in ('bfloat16', 'float16'):
    return f'takes bfloat16 and float16, not {case.dtype}'
  if max(case.width, case.value_width) > widest:
    return f'takes heads up to {widest} wide, not {max(case.width, case.value_width)}'
  if case.soft_cap is not None:
    return 'has no soft cap'
  return None


def _splash_refusal(case: Case, kind: str | None) -> str | None:
  """The same of splash."""
  if kind is not None and kernels(kind) != 'tpu':
    return f'runs on TPU v4 and later, not on {kind}'
  if case.dtype not in ('bfloat16', 'float32'):
    return f'takes bfloat16 and float32, not {case.dtype}'
  tables = 4 * (-(-case.length // splash_size(case.length))) ** 2
  if tables > SCALARS:
    return f'keeps {tables} bytes of block tables in scalar memory, {SCALARS} fit'
  return None


def alone(segments_BL: jax.Array) -> jax.Array:
  """Whether each row is one segment and then padding: what a causal mask alone gets right."""
  there_BL = segments_BL > 0
  other_BL = there_BL & (segments_BL != segments_BL[:, :1])
  again_BL = there_BL[:, 1:] & ~there_BL[:, :-1]
  return ~(other_BL.any() | again_BL.any())


def splash(
  q_BLNH: jax.Array,
  k_BLKH: jax.Array,
  v_BLKV: jax.Array,
  segments_BL: jax.Array,
  scale: float,
  soft_cap: float | None = None,
  interpret: bool = False,
  size: int | None = None,
) -> jax.Array:
  """jax's splash attention on whole rows, under the lazy causal mask and segments."""
  L = q_BLNH.shape[1]
  size = min(size or splash_size(L), -(-L // LANES) * LANES)
  more = -L % size
  pad = lambda x: jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
  first = lambda x: rearrange(pad(x), 'B L N H -> B N L H')
  segments_BM = pad(segments_BL)
  q_BLNH = (q_BLNH.astype(jnp.float32) * scale).astype(q_BLNH.dtype)
  kernel = causal(L + more, size, soft_cap, interpret)
  by_segment = splash_attention.SegmentIds(segments_BM, segments_BM)
  o_BNLV = jax.vmap(kernel)(first(q_BLNH), first(k_BLKH), first(v_BLKV), by_segment)
  return _without_padding(rearrange(o_BNLV, 'B N L V -> B L N V')[:, :L], segments_BL)


def splash_size(length: int) -> int:
  """Positions in a block: measured, or by the rule."""
  return sizes.chunk(splash_rule(length), 'splash', length=length)


def splash_rule(length: int) -> int:
  """512; of long rows more, so that the tables stay small."""
  return 512 if length <= 2**16 else 1024


def causal(length: int, size: int, soft_cap: float | None, interpret: bool) -> Any:
  """Splash's kernel for a causal mask.

  Which blocks of a causal mask are full, cut or empty does not depend on their size. The library
  finds out pair by pair, L² on the host; so it is shown blocks of 2, and told the real size after.
  """
  I = length // size
  of = lambda n: splash_attention.BlockSizes(
    block_q=n, block_kv=n, block_q_dkv=n, block_kv_dkv=n, block_q_dq=n, block_kv_dq=n
  )
  small = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([splash_attention.CausalMask((2 * I, 2 * I))]),
    block_sizes=of(2),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=soft_cap,
    interpret=interpret,
  )
  infos = small.fwd_mask_info, small.dq_mask_info, small.dkv_mask_info
  whole = (x._replace(q_sequence=jnp.arange(length, dtype=jnp.int32)) for x in infos)
  return type(small)(*whole, **small.kwargs | {'block_sizes': of(size)})


def cudnn(
  q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKV: jax.Array, segments_BL: jax.Array, scale: float
) -> jax.Array:
  """cuDNN's attention on rows of one segment; keys and values get one width, a multiple of 8."""
  V = v_BLKV.shape[3]
  width = -(-max(q_BLNH.shape[3], V) // 8) * 8
  wide = (jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[3]),)) for x in (q_BLNH, k_BLKH, v_BLKV))
  o_BLNV = jax.nn.dot_product_attention(*wide, scale=scale, is_causal=True, implementation='cudnn')
  return _without_padding(o_BLNV[..., :V], segments_BL)


def _without_padding(o_BLNV: jax.Array, segments_BL: jax.Array) -> jax.Array:
  """Zeros where there is no token."""
  return jnp.where((segments_BL > 0)[..., None, None], o_BLNV, 0)
