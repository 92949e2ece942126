"""Grouped matmul for a dropless mixture of experts: every row meets its own expert's matrix.

    y_r = x_r · w[expert_r]          2·R·D·F flops for R = tokens · active rows

`arrange` sorts rows by expert once, the matmuls of one layer share it:

- `ragged`: rows sorted by expert, `jax.lax.ragged_dot`. For accelerators.
- `blocks`: each expert's rows padded to whole blocks, one batched matmul with the block's expert
  gathered. For CPU, where ragged_dot is dense and masked (34 times slower at 64 experts). Rows that
  are no more than the blocks would be lie unsorted, a block each: what decoding a row or two needs
  (tiny_r1's layer: 9 µs in place of 95).
- `reference`: every row with every expert, then one is taken. The specification, and the oracle
  in tests.

A weight with adapters (core/qarray.py) is met through its low-rank pair, 2·R·rank·(D + F) flops
more.

Rows whose expert id is E (padding, experts of other devices) are not computed; they come back as
zeros.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.core.qarray import Adapted, Weight
from r1jax.kernels.grouped import reference
from r1jax.kernels.platform import resolve

IMPLEMENTATIONS = ('ragged', 'blocks', 'reference')


class Groups(NamedTuple):
  """How rows (token, choice) lie in the buffer that the matmuls read."""

  row_S: jax.Array  # buffer slot -> row; R where the slot is padding
  slot_R: jax.Array  # row -> buffer slot; S where the row is not computed
  sizes_E: jax.Array  # rows an expert, padding not counted
  block_n: jax.Array | None  # blocks: block -> expert
  expert_S: jax.Array | None  # reference: slot -> expert


def block_rows(rows: int, experts: int) -> int:
  """Rows a block: about a quarter of an expert's even share, within 16 to 256.

  Padding then stays below a fifth of the rows on average.
  """
  return min(256, max(16, 2 ** round(math.log2(max(1, rows / (4 * experts))))))


def arrange(expert_R: jax.Array, experts: int, implementation: str | None = None) -> Groups:
  """Sorts rows by expert id (0..experts-1; `experts` marks a row that is not to be computed)."""
  kind = resolve(implementation, {'cpu': 'blocks', '*': 'ragged'}, IMPLEMENTATIONS)
  rows = expert_R.shape[0]
  sizes_E = jnp.zeros(experts + 1, jnp.int32).at[expert_R].add(1)[:experts]
  if kind == 'reference':
    identity = jnp.arange(rows, dtype=jnp.int32)
    own_R = jnp.where(expert_R < experts, identity, rows)
    return Groups(own_R, own_R, sizes_E, None, jnp.minimum(expert_R, experts - 1))
  block = block_rows(rows, experts) if kind == 'blocks' else 1
  if kind == 'blocks' and rows <= -(-(rows + experts * (block - 1)) // block):
    identity = jnp.arange(rows, dtype=jnp.int32)
    own_R = jnp.where(expert_R < experts, identity, rows)
    return Groups(own_R, own_R, sizes_E, jnp.minimum(expert_R, experts - 1), None)
  room_E = -(-sizes_E // block) * block
  first_E = jnp.cumsum(room_E) - room_E
  order_R = jnp.argsort(expert_R, stable=True)
  sorted_R = expert_R[order_R]
  rank_R = jnp.arange(rows) - (jnp.cumsum(sizes_E) - sizes_E)[jnp.minimum(sorted_R, experts - 1)]
  slots = -(-(rows + experts * (block - 1)) // block) * block
  slot_sorted = first_E[jnp.minimum(sorted_R, experts - 1)] + rank_R
  slot_sorted = jnp.where(sorted_R < experts, slot_sorted, slots).astype(jnp.int32)
  slot_R = jnp.zeros(rows, jnp.int32).at[order_R].set(slot_sorted, unique_indices=True)
  row_S = jnp.full(slots, rows, jnp.int32)
  row_S = row_S.at[slot_R].set(jnp.arange(rows, dtype=jnp.int32), mode='drop')
  block_n = None
  if kind == 'blocks':
    ends_E = jnp.cumsum(room_E) // block
    block_n = jnp.searchsorted(ends_E, jnp.arange(slots // block), side='right')
    block_n = jnp.minimum(block_n, experts - 1)
  return Groups(row_S, slot_R, sizes_E, block_n, None)


@jax.custom_vjp
def gather_rows(x_TD: jax.Array, groups: Groups) -> jax.Array:
  """Tokens into the buffer: slot s holds the token of row row_S[s], zeros where there is none.

  The gradient is again a gather (each row has one slot) instead of the scatter that autodiff would
  write.
  """
  active = groups.slot_R.shape[0] // x_TD.shape[0]
  return jnp.take(x_TD, groups.row_S // active, axis=0, mode='fill', fill_value=0)


def _gather_forward(x_TD: jax.Array, groups: Groups) -> tuple:
  return gather_rows(x_TD, groups), (groups, x_TD.shape[0])


def _gather_backward(saved: tuple, g_SD: jax.Array) -> tuple:
  groups, tokens = saved
  g_RD = jnp.take(g_SD, groups.slot_R, axis=0, mode='fill', fill_value=0)
  return g_RD.reshape(tokens, -1, g_SD.shape[-1]).sum(1), None


gather_rows.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def return_rows(y_SD: jax.Array, groups: Groups) -> jax.Array:
  """The buffer back into rows: row r takes slot slot_R[r], zeros where it was not computed."""
  return jnp.take(y_SD, groups.slot_R, axis=0, mode='fill', fill_value=0)


def _return_forward(y_SD: jax.Array, groups: Groups) -> tuple:
  return return_rows(y_SD, groups), groups


def _return_backward(groups: Groups, g_RD: jax.Array) -> tuple:
  return jnp.take(g_RD, groups.row_S, axis=0, mode='fill', fill_value=0), None


return_rows.defvjp(_return_forward, _return_backward)


def grouped_matmul(x_SD: jax.Array, w_EDF: Weight, groups: Groups) -> jax.Array:
  """Every slot times its expert's matrix; slots without a row give zeros or are never read back."""
  if isinstance(w_EDF, Adapted):
    low_SF = grouped_matmul(grouped_matmul(x_SD, w_EDF.down, groups), w_EDF.up, groups)
    return grouped_matmul(x_SD, w_EDF.base, groups) + w_EDF.scale * low_SF
  w_EDF = w_EDF.astype(x_SD.dtype)
  if groups.expert_S is not None:
    return reference.grouped_matmul(x_SD, w_EDF, groups.expert_S)
  if groups.block_n is None:
    return jax.lax.ragged_dot(x_SD, w_EDF, groups.sizes_E)
  x_nbD = x_SD.reshape(groups.block_n.shape[0], -1, x_SD.shape[-1])
  y_nbF = jnp.einsum('nbD,nDF->nbF', x_nbD, w_EDF[groups.block_n])
  return y_nbF.reshape(x_SD.shape[0], -1)
