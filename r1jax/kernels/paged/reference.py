"""Decode attention over pages, as a specification: gather all, one softmax in at least fp32.

s = cap(scale · q·k),   lse = log Σ exp(s),   o = Σ exp(s − lse) v       over the seen places
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from r1jax.kernels.paged.memory import Memory, Stack, gather, in_pool
from r1jax.kernels.paged.visible import Visible, seen
from r1jax.kernels.platform import sums


def paged_attention(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  visible: Visible,
  scale: float,
  soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(o_BNV, lse_BN); a row that sees nothing gives 0 and −inf."""
  at = layer, in_pool(visible.pages_BT, memory)
  return attend(q_BNH, memory, at, seen(visible, memory.size), scale, soft_cap)


def selected_rows(
  q_BNH: jax.Array,
  memory: Memory,
  layer: jax.Array,
  ids_BT: jax.Array,
  scale: float,
  soft_cap: float | None = None,
  head_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same over single places, page·S + place, −1 where there is none.

  head_B: the key-value head that all queries of a row read; None: each that of its group.
  """
  at = layer, in_pool(ids_BT // memory.size, memory), ids_BT % memory.size
  at = at if head_B is None else (*at, head_B[:, None])
  return attend(q_BNH, memory, at, ids_BT >= 0, scale, soft_cap)


def attend(
  q_BNH: jax.Array,
  memory: Memory,
  at: tuple[jax.Array, ...],
  seen_BM: jax.Array,
  scale: float,
  soft_cap: float | None,
) -> tuple[jax.Array, jax.Array]:
  """Over the vectors at these places of the stacks."""
  dtype = sums(q_BNH)

  def read(stack: Stack, width: int) -> jax.Array:
    x_BMKW, scale_BMK = gather(stack, at, width, dtype)
    x_BMKW = x_BMKW if scale_BMK is None else x_BMKW * scale_BMK[..., None]
    x_BMKW = jnp.where(seen_BM[..., None, None], x_BMKW, 0)
    return repeat(x_BMKW, 'B M K W -> B M (K G) W', G=q_BNH.shape[1] // x_BMKW.shape[2])

  k_BMNH = jnp.concatenate([read(*x) for x in zip(memory.keys, memory.widths)], -1)
  v_BMNV = k_BMNH[..., : memory.width]
  if memory.values is not None:
    v_BMNV = read(memory.values, memory.width)
  s_BNM = scale * jnp.einsum('BNH,BMNH->BNM', q_BNH.astype(dtype), k_BMNH)
  s_BNM = s_BNM if soft_cap is None else soft_cap * jnp.tanh(s_BNM / soft_cap)
  seen_B1M = rearrange(seen_BM, 'B M -> B 1 M')
  lse_BN = jax.nn.logsumexp(s_BNM, -1, where=seen_B1M)
  base_BN = jnp.where(lse_BN == -jnp.inf, 0, lse_BN)
  p_BNM = jnp.where(seen_B1M, jnp.exp(s_BNM - base_BN[..., None]), 0)
  return jnp.einsum('BNM,BMNV->BNV', p_BNM, v_BMNV).astype(q_BNH.dtype), lse_BN
