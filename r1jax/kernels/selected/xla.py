"""Attention over listed pages in XLA: queries in chunks, each with its pages gathered.

    p = softmax(scale · q kᵀ),  o = p v
    ds = p · (do vᵀ − delta),   dq = ds k,   dk += dsᵀ q,   dv += pᵀ do     (delta = Σ do·o − dlse)

Backward gathers the pages again and adds to theirs alone. Memory: chunk · T·size · (K·(H+V) + N),
and in the backward dk and dv once in fp32; HBM traffic is three times that of the pages (read,
written side by side, read again).
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import over_chunks
from r1jax.kernels.platform import sums
from r1jax.kernels.selected.reference import softmax


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
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """(o_BLNV, lse_BLN); without v the value is the first `width` numbers of the key."""
  dot = functools.partial(jnp.einsum, preferred_element_type=sums(q_BLNH))

  def one(_: None, piece: tuple) -> tuple[None, tuple]:
    q_BCNH, ids_BCKT, here = piece
    k_BCKZH, v_BCKZV = gathered(k_BMKH, v_BMKV, ids_BCKT, size, width)
    seen_BCK1Z = seen_in(ids_BCKT, size, here, keys)[..., None, :]
    s_BCKGZ = scale * products(k_BCKZH, by_kv_head(q_BCNH, k_BMKH))
    p_BCKGZ, lse_BCKG = softmax(s_BCKGZ, seen_BCK1Z)
    o_BCKGV = dot('BCKGZ,BCKZV->BCKGV', p_BCKGZ.astype(v_BCKZV.dtype), v_BCKZV)
    return None, (joined(o_BCKGV).astype(k_BMKH.dtype), joined(lse_BCKG))

  return over_chunks(one, None, (q_BLNH, ids_BLKT, queries), chunk)[1]


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
  chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """(dq, dk, dv) in the inputs' dtypes, summed in at least fp32; dv is in dk where v is in k."""
  dtype = sums(q_BLNH)
  dot = functools.partial(jnp.einsum, preferred_element_type=dtype)

  def one(summed: tuple, piece: tuple) -> tuple[tuple, jax.Array]:
    q_BCNH, ids_BCKT, here, do_BCNV, lse_BCN, delta_BCN = piece
    q_BCKGH, do_BCKGV, lse_BCKG, delta_BCKG = (
      by_kv_head(x, k_BMKH) for x in (q_BCNH, do_BCNV, lse_BCN, delta_BCN)
    )
    k_BCKZH, v_BCKZV = gathered(k_BMKH, v_BMKV, ids_BCKT, size, width)
    seen_BCK1Z = seen_in(ids_BCKT, size, here, keys)[..., None, :]
    s_BCKGZ = scale * products(k_BCKZH, q_BCKGH)
    p_BCKGZ = jnp.exp(jnp.where(seen_BCK1Z, s_BCKGZ - lse_BCKG[..., None], -jnp.inf))
    dp_BCKGZ = products(v_BCKZV, do_BCKGV)
    ds_BCKGZ = jnp.where(seen_BCK1Z, scale * p_BCKGZ * (dp_BCKGZ - delta_BCKG[..., None]), 0)
    ds_BCKGZ, p_BCKGZ = ds_BCKGZ.astype(k_BMKH.dtype), p_BCKGZ.astype(do_BCNV.dtype)
    more = [
      dot('BCKGZ,BCKGH->BCKZH', ds_BCKGZ, q_BCKGH),
      dot('BCKGZ,BCKGV->BCKZV', p_BCKGZ, do_BCKGV),
    ]
    if v_BMKV is None:
      more = [more[0].at[..., :width].add(more[1])]
    summed = tuple(scatter_add(x, ids_BCKT, size, y) for x, y in zip(summed, more))
    return summed, joined(dot('BCKGZ,BCKZH->BCKGH', ds_BCKGZ, k_BCKZH)).astype(q_BLNH.dtype)

  kept = [x for x in (k_BMKH, v_BMKV) if x is not None]
  pieces = (q_BLNH, ids_BLKT, queries, do_BLNV, lse_BLN, delta_BLN)
  summed, dq_BLNH = over_chunks(one, tuple(jnp.zeros(x.shape, dtype) for x in kept), pieces, chunk)
  dk_BMKH, dv_BMKV = (*(d.astype(x.dtype) for d, x in zip(summed, kept)), None)[:2]
  return dq_BLNH, dk_BMKH, dv_BMKV


def products(k_BCKZH: jax.Array, q_BCKGH: jax.Array) -> jax.Array:
  """q kᵀ as BCKGZ: XLA on CPU is twice as fast with the long operand in front."""
  s = jnp.einsum('BCKZH,BCKGH->BCKZG', k_BCKZH, q_BCKGH, preferred_element_type=sums(q_BCKGH))
  return s.swapaxes(-1, -2)


def by_kv_head(x_BCN: jax.Array, k_BMKH: jax.Array) -> jax.Array:
  """[B, C, N, …] as [B, C, K, G, …]."""
  return rearrange(x_BCN, 'B C (K G) ... -> B C K G ...', K=k_BMKH.shape[2])


def joined(x_BCKG: jax.Array) -> jax.Array:
  """And back."""
  return rearrange(x_BCKG, 'B C K G ... -> B C (K G) ...')


def gathered(
  k_BMKH: jax.Array, v_BMKV: jax.Array | None, ids_BCKT: jax.Array, size: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """Keys and values of the listed pages."""
  k_BCKZH = pages(k_BMKH, ids_BCKT, size)
  return k_BCKZH, k_BCKZH[..., :width] if v_BMKV is None else pages(v_BMKV, ids_BCKT, size)


def pages(x_BMKH: jax.Array, ids_BCKT: jax.Array, size: int) -> jax.Array:
  """x_BCKZH, the places of the listed pages of each kv head; −1 gives those of page 0."""
  b, ids_BCKT, kv = _at(x_BMKH, ids_BCKT)
  x_BPSKH = rearrange(jnp.asarray(x_BMKH), 'B (P S) ... -> B P S ...', S=size)
  x_BCKTSH = x_BPSKH.at[b, jnp.maximum(ids_BCKT, 0), :, kv].get(mode='promise_in_bounds')
  return rearrange(x_BCKTSH, 'B C K T S H -> B C K (T S) H')


def scatter_add(x_BMKH: jax.Array, ids_BCKT: jax.Array, size: int, y_BCKZH: jax.Array) -> jax.Array:
  """x with y added at the places of the listed pages; what is listed as −1 is dropped."""
  b, ids_BCKT, kv = _at(x_BMKH, ids_BCKT)
  x_BPSKH = rearrange(x_BMKH, 'B (P S) ... -> B P S ...', S=size)
  y_BCKTSH = rearrange(y_BCKZH, 'B C K (T S) H -> B C K T S H', S=size)
  to_BCKT = jnp.where(ids_BCKT < 0, x_BPSKH.shape[1], ids_BCKT)
  return x_BPSKH.at[b, to_BCKT, :, kv].add(y_BCKTSH, mode='drop').reshape(x_BMKH.shape)


def _at(x_BMKH: jax.Array, ids_BCKT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows, ids and kv heads that broadcast to [B, C, K, T]; one list for all heads is repeated."""
  B, K = x_BMKH.shape[0], x_BMKH.shape[2]
  ids_BCKT = jnp.broadcast_to(ids_BCKT, (*ids_BCKT.shape[:2], K, ids_BCKT.shape[3]))
  return jnp.arange(B)[:, None, None, None], ids_BCKT, jnp.arange(K)[:, None]


def seen_in(ids_BCKT: jax.Array, size: int, here: Tokens, keys: Tokens) -> jax.Array:
  """Which places of its listed pages a query sees, [B, C, K, Z]."""
  b = jnp.arange(ids_BCKT.shape[0])[:, None, None, None]
  split = lambda x: rearrange(jnp.asarray(x), 'B (P S) -> B P S', S=size)[
    b, jnp.maximum(ids_BCKT, 0)
  ]
  index_BCKTS, segments_BCKTS = (split(x) for x in keys)
  own = lambda x: x[:, :, None, None, None]
  seen_BCKTS = (segments_BCKTS == own(here.segments_BM)) & (segments_BCKTS > 0)
  seen_BCKTS &= (index_BCKTS <= own(here.index_BM)) & (ids_BCKT >= 0)[..., None]
  return rearrange(seen_BCKTS, 'B C K T S -> B C K (T S)')
