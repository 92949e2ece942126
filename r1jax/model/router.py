"""The V3 router (arXiv 2412.19437 §2.1.2 and DeepSeek's reference inference code).

    s = sigmoid(x W)                        scores, fp32 (or softmax)
    select on s + b                         b fp32, outside the gradient; gates never see it
    group score = sum of its two best s+b   closed groups are −inf, not 0: s + b may be negative
    gate = s[chosen] / Σ s[chosen] · scale  (V2: the best s+b alone; s[chosen] · scale)

Sequence-wise balance: Σ_i f_i P_i a sequence, f_i = E/(A T) Σ_t 1[i ∈ TopA(s_t)],
P_i = mean_t s_ti / Σ_j s_tj; 1 where load is even. The bias moves outside the gradient
(optim/balance.py).
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from r1jax.core.qarray import Weight, dense
from r1jax.model.config import MoE
from r1jax.model.types import Term


def scores(x_BLD: jax.Array, w_DE: Weight, cfg: MoE) -> jax.Array:
  """Affinities s_BLE in fp32."""
  logits_BLE = jnp.einsum('BLD,DE->BLE', x_BLD.astype(jnp.float32), dense(w_DE).astype(jnp.float32))
  return jax.nn.sigmoid(logits_BLE) if cfg.score == 'sigmoid' else jax.nn.softmax(logits_BLE, -1)


def select(s_BLE: jax.Array, bias_E: jax.Array, cfg: MoE) -> jax.Array:
  """Expert ids, group-limited top-A of the biased scores."""
  biased = jax.lax.stop_gradient(s_BLE + bias_E)
  if cfg.groups > 1:
    grouped = rearrange(biased, 'B L (g e) -> B L g e', g=cfg.groups)
    counted = min(2, grouped.shape[-1]) if cfg.group_score == 'two_best' else 1
    best_BLg = jax.lax.top_k(grouped, counted)[0].sum(-1)
    open_BLk = jax.lax.top_k(best_BLg, cfg.active_groups)[1]
    open_BLg = jax.nn.one_hot(open_BLk, cfg.groups, dtype=jnp.bool_).any(-2)
    biased = rearrange(jnp.where(open_BLg[..., None], grouped, -jnp.inf), 'B L g e -> B L (g e)')
  return jax.lax.top_k(biased, cfg.active)[1].astype(jnp.int32)


def gates(s_BLE: jax.Array, ids_BLA: jax.Array, cfg: MoE) -> jax.Array:
  """Weights of the chosen experts, from the unbiased scores."""
  g_BLA = jnp.take_along_axis(s_BLE, ids_BLA, -1)
  if cfg.gates == 'normalized':
    g_BLA = g_BLA / (g_BLA.sum(-1, keepdims=True) + 1e-20)
  return g_BLA * cfg.scale


def load(ids_BLA: jax.Array, valid_BL: jax.Array, experts: int) -> jax.Array:
  """Tokens that chose each expert; padding is not counted."""
  hits_BLE = jax.nn.one_hot(ids_BLA, experts, dtype=jnp.float32).sum(-2)
  return jnp.einsum('BLE,BL->E', hits_BLE, valid_BL.astype(jnp.float32))


def balance(s_BLE: jax.Array, segments_BL: jax.Array, cfg: MoE) -> Term:
  """Σ over sequences of Σ_i f_i P_i, and the number of sequences; each packed segment is one.

  Sums per segment are scattered to the segment's number within its row, so no bound on segments is
  needed.
  """
  chosen_BLA = jax.lax.top_k(jax.lax.stop_gradient(s_BLE), cfg.active)[1]
  chosen_BLE = jax.nn.one_hot(chosen_BLA, cfg.experts, dtype=jnp.float32).sum(-2)
  share_BLE = s_BLE / (s_BLE.sum(-1, keepdims=True) + 1e-20)
  slots = segments_BL.shape[1] + 1
  per_segment = jax.vmap(lambda x, seg: jax.ops.segment_sum(x, seg, slots)[1:])
  count_BS = per_segment(jnp.ones_like(segments_BL, jnp.float32), segments_BL)
  tokens_BS1 = jnp.maximum(count_BS, 1)[..., None]
  f_BSE = per_segment(chosen_BLE, segments_BL) * cfg.experts / (cfg.active * tokens_BS1)
  p_BSE = per_segment(share_BLE, segments_BL) / tokens_BS1
  return Term(jnp.sum(f_BSE * p_BSE), jnp.sum(count_BS > 0).astype(jnp.float32))
