"""A run of equal layers as one scan over stacked weights: compile time does not grow with depth.

The stacked cache travels in the carry and is updated in place by layer index; as a scanned input
and output it would be copied each step. Routes, load, balance terms and the residual stream behind
each block are scanned outputs with a leading layer axis; what nobody reads, jit leaves out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.block import Block
from r1jax.model.config import Run
from r1jax.model.types import LayerIn, LayerOut, Place


class Period(nn.Module):
  """One turn of the scan: the period's blocks in order."""

  cfg: Run

  @nn.compact
  def __call__(
    self, carry: tuple, scanned: tuple, place: Place
  ) -> tuple[tuple, tuple[LayerOut, ...]]:
    (x_BLD, caches), (index, routes) = carry, scanned
    place = place._replace(layer=index)
    kept, outs = [], []
    for j, spec in enumerate(self.cfg.period):
      given = LayerIn(caches and caches[j], routes and routes[j])
      x_BLD, out = Block(spec, name=f'block{j}')(x_BLD, place, given)
      kept.append(out.cache)
      outs.append(out._replace(cache=None, stream_BLD=x_BLD))
    return (x_BLD, caches and tuple(kept)), tuple(outs)


def stack(run: Run, remat: str, name: str) -> nn.Module:
  """The scanned run: weights at name/block{j}, a leading axis of `repeats`; run it by `call`."""
  period = nn.remat(Period, prevent_cse=False) if remat == 'full' else Period
  scan = nn.scan(
    period,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(0, nn.broadcast),
    length=run.repeats,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return scan(run, name=name)


def call(
  layers: nn.Module, x_BLD: jax.Array, place: Place, caches: tuple | None, routes: tuple | None
) -> tuple[jax.Array, tuple | None, tuple[LayerOut, ...]]:
  """Runs a stack; caches and routes hold one stacked entry a block of the period, or are None."""
  index_n = jnp.arange(layers.cfg.repeats)
  (x_BLD, caches), outs = layers((x_BLD, caches), (index_n, routes), place)
  return x_BLD, caches, outs
