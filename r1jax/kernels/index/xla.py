"""The lightning indexer in XLA: queries in chunks, heads one after the other.

The gradient of the loss is made where the loss is, chunk by chunk, while p and softmax I are there,
and only scaled later: attention probabilities are computed once, and nothing of L×M is kept.

    dI = softmax I − p,   dw_j = Σ_s dI ReLU(q_j·k),   dz_j = w_j dI [q_j·k > 0],
    dq_j = dz_j k,        dk = Σ_t Σ_j dz_jᵀ q_j

Memory: some arrays of chunk × M in fp32 (dense), or chunk × A × (K·H + N + J) (selected).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import masked_softmax, sees
from r1jax.kernels.chunks import over_chunks, vary_like
from r1jax.kernels.index.reference import Indexer, Target, best, divergence
from r1jax.kernels.platform import sums
from r1jax.kernels.selected.xla import pages, scatter_add, seen_in


class Piece(NamedTuple):
  """A chunk of queries: the attention's, the indexer's, their weights and where they stand."""

  target_BCNH: jax.Array
  q_BCJI: jax.Array
  w_BCJ: jax.Array
  here: Tokens
  ids_BCA: jax.Array | None


def top_k(
  q_BLJI: jax.Array,
  k_BMI: jax.Array,
  w_BLJ: jax.Array,
  queries: Tokens,
  keys: Tokens,
  k: int,
  chunk: int,
) -> jax.Array:
  """ids_BLA of the k best keys seen, best first, then −1."""

  def one(_: None, piece: tuple) -> tuple[None, jax.Array]:
    q_BCJI, w_BCJ, here = piece
    return None, best(scores(q_BCJI, k_BMI, w_BCJ), sees(here, keys, Band()), k)

  return over_chunks(one, None, (q_BLJI, w_BLJ, queries), chunk)[1]


def scores(q_BCJI: jax.Array, k_BMI: jax.Array, w_BCJ: jax.Array) -> jax.Array:
  """I_BCM, summed head by head: never those of all heads at once."""

  def head(s_BCM: jax.Array, part: tuple) -> tuple[jax.Array, None]:
    q_BCI, w_BC = part
    return s_BCM + w_BC[..., None] * jax.nn.relu(product(q_BCI, k_BMI)), None

  start = jnp.zeros((*q_BCJI.shape[:2], k_BMI.shape[1]), sums(q_BCJI))
  return jax.lax.scan(head, vary_like(start, q_BCJI), by_head(q_BCJI, w_BCJ))[0]


def scores_vjp(
  q_BCJI: jax.Array, k_BMI: jax.Array, w_BCJ: jax.Array, ds_BCM: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BCJI, dk_BMI, dw_BCJ) of `scores` for its cotangent, head by head again."""
  dtype = ds_BCM.dtype

  def head(dk_BMI: jax.Array, part: tuple) -> tuple[jax.Array, tuple]:
    q_BCI, w_BC = part
    z_BCM = product(q_BCI, k_BMI)
    dw_BC = jnp.sum(ds_BCM * jax.nn.relu(z_BCM), -1)
    dz_BCM = jnp.where(z_BCM > 0, ds_BCM * w_BC[..., None], 0).astype(k_BMI.dtype)
    dq_BCI = jnp.einsum('BCM,BMI->BCI', dz_BCM, k_BMI, preferred_element_type=dtype)
    more_BMI = jnp.einsum('BCM,BCI->BMI', dz_BCM, q_BCI, preferred_element_type=dtype)
    return dk_BMI + more_BMI, (dq_BCI, dw_BC)

  start = jnp.zeros(k_BMI.shape, dtype)
  dk_BMI, (dq_JBCI, dw_JBC) = jax.lax.scan(head, vary_like(start, q_BCJI), by_head(q_BCJI, w_BCJ))
  return jnp.moveaxis(dq_JBCI, 0, 2), dk_BMI, jnp.moveaxis(dw_JBC, 0, 2)


def by_head(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """[B, C, heads, …] with heads in front."""
  return tuple(jnp.moveaxis(x, 2, 0) for x in arrays)


def product(q_BCI: jax.Array, k_BMI: jax.Array) -> jax.Array:
  """q · k, one head."""
  return jnp.einsum('BCI,BMI->BCM', q_BCI, k_BMI, preferred_element_type=sums(q_BCI))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def kl(
  static: tuple[float, int],
  target: Target,
  indexer: Indexer,
  queries: Tokens,
  keys: Tokens,
  ids_BLA: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """(Σ KL, tokens); static: the attention's scale and the chunk. Without ids over all seen keys."""
  return _stream(static, target, indexer, queries, keys, ids_BLA, gradient=False)[0]


def _kl_forward(static, target, indexer, queries, keys, ids_BLA):
  out, grads = _stream(static, target, indexer, queries, keys, ids_BLA, gradient=True)
  return out, (grads, target)


def _kl_backward(static, kept, cotangents):
  grads, target = kept
  scaled = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), grads)
  # The attention is a constant here; its zeros vanish where the caller stopped the gradient.
  return jax.tree.map(jnp.zeros_like, target), scaled, None, None, None


kl.defvjp(_kl_forward, _kl_backward)


def _stream(static, target, indexer, queries, keys, ids_BLA, gradient: bool):
  """((Σ KL, tokens), gradients in the indexer's arrays or None)."""
  (scale, chunk), (q_BLNH, k_BMKH), (q_BLJI, k_BMI, w_BLJ) = static, target, indexer
  step = _dense if ids_BLA is None else _selected
  dtype = sums(q_BLJI)

  def one(carry: tuple, piece: Piece) -> tuple:
    total, count, dk_BMI = carry
    kl_BC, some_BC, grads, dk_BMI = step(piece, k_BMKH, scale, k_BMI, keys, dk_BMI)
    return (total + kl_BC.sum(), count + some_BC.sum().astype(dtype), dk_BMI), grads

  zero = jnp.zeros((), dtype)
  start = (zero, zero, jnp.zeros(k_BMI.shape, dtype) if gradient else None)
  pieces = Piece(q_BLNH, q_BLJI, w_BLJ, queries, ids_BLA)
  (total, count, dk_BMI), grads = over_chunks(one, start, pieces, chunk)
  if not gradient:
    return (total, count), None
  dq_BLJI, dw_BLJ = grads
  return (total, count), (dq_BLJI, dk_BMI.astype(k_BMI.dtype), dw_BLJ)


def _dense(piece: Piece, k_BMKH, scale, k_BMI, keys: Tokens, dk_BMI):
  """(KL_BC, whether anything is seen, (dq, dw) or None, dk) over all seen keys."""
  seen_BCM = sees(piece.here, keys, Band())
  p_BCM = attended(piece.target_BCNH, k_BMKH, seen_BCM, scale)
  s_BCM = scores(piece.q_BCJI, k_BMI, piece.w_BCJ)
  kl_BC, ds_BCM = divergence(p_BCM, s_BCM, seen_BCM)
  if dk_BMI is None:
    return kl_BC, seen_BCM.any(-1), None, None
  dq, more_BMI, dw = scores_vjp(piece.q_BCJI, k_BMI, piece.w_BCJ, ds_BCM)
  grads = (dq.astype(piece.q_BCJI.dtype), dw.astype(piece.w_BCJ.dtype))
  return kl_BC, seen_BCM.any(-1), grads, dk_BMI + more_BMI


def attended(q_BCNH: jax.Array, k_BMKH: jax.Array, seen_BCM: jax.Array, scale: float) -> jax.Array:
  """Attention probabilities, the mean over heads, summed head by head."""
  N, K = q_BCNH.shape[2], k_BMKH.shape[2]
  (k_KBMH,) = by_head(k_BMKH)

  def head(p_BCM: jax.Array, part: tuple) -> tuple[jax.Array, None]:
    q_BCH, kv = part
    return p_BCM + masked_softmax(scale * product(q_BCH, k_KBMH[kv]), seen_BCM) / N, None

  start = jnp.zeros(seen_BCM.shape, sums(q_BCNH))
  heads = (*by_head(q_BCNH), jnp.arange(N) // (N // K))
  return jax.lax.scan(head, vary_like(start, q_BCNH), heads)[0]


def _selected(piece: Piece, k_BMKH, scale, k_BMI, keys: Tokens, dk_BMI):
  """The same over the selected keys: gathered once, all heads together."""
  ids_BC1A = piece.ids_BCA[:, :, None]
  seen_BCA = seen_in(ids_BC1A, 1, piece.here, keys)[:, :, 0]
  dot = functools.partial(jnp.einsum, preferred_element_type=sums(piece.q_BCJI))
  k_BCKAH = pages(k_BMKH, ids_BC1A, 1)
  q_BCKGH = rearrange(piece.target_BCNH, 'B C (K G) H -> B C K G H', K=k_BMKH.shape[2])
  p_BCKGA = masked_softmax(
    scale * dot('BCKGH,BCKAH->BCKGA', q_BCKGH, k_BCKAH), seen_BCA[:, :, None, None]
  )
  k_BCAI = pages(k_BMI[:, :, None], ids_BC1A, 1)[:, :, 0]
  z_BCJA = dot('BCJI,BCAI->BCJA', piece.q_BCJI, k_BCAI)
  s_BCA = jnp.einsum('BCJA,BCJ->BCA', jax.nn.relu(z_BCJA), piece.w_BCJ)
  kl_BC, ds_BCA = divergence(p_BCKGA.mean((2, 3)), s_BCA, seen_BCA)
  if dk_BMI is None:
    return kl_BC, seen_BCA.any(-1), None, None
  dw_BCJ = jnp.einsum('BCA,BCJA->BCJ', ds_BCA, jax.nn.relu(z_BCJA)).astype(piece.w_BCJ.dtype)
  dz_BCJA = jnp.where(z_BCJA > 0, ds_BCA[:, :, None] * piece.w_BCJ[..., None], 0)
  dz_BCJA = dz_BCJA.astype(k_BMI.dtype)
  dq_BCJI = dot('BCJA,BCAI->BCJI', dz_BCJA, k_BCAI).astype(piece.q_BCJI.dtype)
  dk_BCAI = dot('BCJA,BCJI->BCAI', dz_BCJA, piece.q_BCJI)
  dk_BMI = scatter_add(dk_BMI[:, :, None], ids_BC1A, 1, dk_BCAI[:, :, None])[:, :, 0]
  return kl_BC, seen_BCA.any(-1), (dq_BCJI, dw_BCJ), dk_BMI
