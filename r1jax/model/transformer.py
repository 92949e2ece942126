"""The whole decoder: embedding, runs of layers, final norm; prediction modules beside it.

The head is not applied here: training scores targets with the fused head (kernels/logprob),
sampling asks `logits` for the last position only, and [B, T, V] never exists.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.core.qarray import Weight, dense, rows
from r1jax.model import stack
from r1jax.model.config import ModelConfig, runs
from r1jax.model.keys import listed
from r1jax.model.mtp import PredictionModule
from r1jax.model.primitives import norm_scale, rms_norm, weight
from r1jax.model.types import LayerOut, Place, Term
from r1jax.sharding.rules import constrain


class Inputs(NamedTuple):
  """One batch, shifted by the data pipeline; `ahead[d]` is the tokens d+1 positions on.

  With a paged cache, `table_BT` and `slots_B` say where each row's memory lies (`types.Place`).
  """

  tokens_BL: jax.Array
  positions_BL: jax.Array
  segments_BL: jax.Array
  ahead: tuple[jax.Array, ...] = ()
  table_BT: jax.Array | None = None
  slots_B: jax.Array | None = None


class Output(NamedTuple):
  """x for the head and of each prediction depth, what caches became, what the routers did.

  routes[run][block] is `Choices` of [n, B, L, …]; load maps a router bias' path to [n, E] (or [E])
  token counts; balance and index are what routers and indexers learn by; streams[run][block] is
  the residual stream behind the blocks, [n, B, L, D] (`stream`).
  """

  x_BLD: jax.Array
  mtp: tuple[jax.Array, ...]
  cache: tuple | None
  routes: tuple
  load: dict[str, jax.Array]
  balance: Term
  index: Term
  streams: tuple


class Transformer(nn.Module):
  """DeepSeek-V3-style decoder; `routes` replays choices of an earlier Output.routes."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self,
    inputs: Inputs,
    cache: tuple | None = None,
    routes: tuple | None = None,
    detach_mtp: bool = False,
  ) -> Output:
    c = self.cfg
    place = Place(
      inputs.positions_BL,
      inputs.segments_BL,
      table_BT=inputs.table_BT,
      slots_B=inputs.slots_B,
      listed_BL=listed(c, inputs.tokens_BL),
    )
    table_VD = weight(self, 'embedding', (c.vocab, c.embed), ('vocab', 'embed'))
    if not c.tied:
      weight(self, 'head', (c.embed, c.vocab), ('embed', 'vocab'))

    def embed(ids_BL: jax.Array, table_VD: Weight) -> jax.Array:
      return constrain(rows(table_VD, ids_BL).astype(c.dtype), 'batch', 'length', None)

    h_BLD = embed(inputs.tokens_BL, table_VD)
    caches, outs = [], {}
    for i, run in enumerate(runs(c.layers)):
      layers = stack.stack(run, c.remat, f'run{i}')
      h_BLD, kept, made = stack.call(layers, h_BLD, place, cache and cache[i], routes and routes[i])
      caches.append(kept)
      outs |= {f'run{i}/block{j}': out for j, out in enumerate(made)}
    x_BLD = rms_norm(h_BLD, norm_scale(self, 'final_scale', c.embed), c.eps)
    normed = c.mtp_input == 'normed'
    h_BLD = x_BLD if normed else h_BLD
    table_VD, h_BLD = jax.lax.stop_gradient((table_VD, h_BLD)) if detach_mtp else (table_VD, h_BLD)
    mtp = []
    for d, (spec, tokens_BL) in enumerate(zip(c.mtp, inputs.ahead)):
      module = PredictionModule(spec, name=f'mtp{d}')
      place = place._replace(listed_BL=listed(c, tokens_BL))
      h_BLD, y_BLD, outs[f'mtp{d}/block'] = module(h_BLD, embed(tokens_BL, table_VD), place)
      h_BLD = y_BLD if normed else h_BLD
      mtp.append(y_BLD)
    by_run = [
      [outs[f'run{i}/block{j}'] for j in range(len(r.period))] for i, r in enumerate(runs(c.layers))
    ]
    routes = tuple(tuple(out.routes for out in run) for run in by_run)
    streams = tuple(tuple(out.stream_BLD for out in run) for run in by_run)
    return Output(x_BLD, tuple(mtp), cache and tuple(caches), routes, *terms(outs), streams)


def terms(outs: dict[str, LayerOut]) -> tuple[dict[str, jax.Array], Term, Term]:
  """Load by router-bias path; summed over layers the balance term and what indexers learn by."""
  moe = {path: out for path, out in outs.items() if out.load_E is not None}
  load = {f'{path}/mlp/router/bias': out.load_E for path, out in moe.items()}
  balance = summed([o.balance for o in moe.values()])
  return load, balance, summed([o.index for o in outs.values() if o.index is not None])


def summed(terms: list[Term]) -> Term:
  """One term of many; none is 0."""
  zero = jnp.zeros(())
  return Term(*(sum((jnp.sum(x) for x in part), zero) for part in zip(*[(zero, zero), *terms])))


def stream(out: Output, cfg: ModelConfig, layer: int) -> jax.Array:
  """The residual stream [B, L, D] behind a layer, counted from 0."""
  at = layer
  for run, streams in zip(runs(cfg.layers), out.streams):
    size = len(run.period) * run.repeats
    if 0 <= at < size:
      turn, block = divmod(at, len(run.period))
      return streams[block][turn]
    at -= size
  raise ValueError(f'layer {layer} of {len(cfg.layers)}; expected 0 … {len(cfg.layers) - 1}')


def dummy_inputs(cfg: ModelConfig) -> Inputs:
  """The smallest inputs that touch every parameter; for init and shape evaluation."""
  one = jnp.ones((1, 1), jnp.int32)
  return Inputs(one, one * 0, one, (one,) * len(cfg.mtp))


def head(params: Any, cfg: ModelConfig) -> jax.Array:
  """The output matrix w_DV."""
  return dense(params['embedding']).T if cfg.tied else dense(params['head'])


def logits(params: Any, cfg: ModelConfig, x_BD: jax.Array) -> jax.Array:
  """fp32 logits_BV of a few positions, for sampling."""
  w_DV = head(params, cfg).astype(x_BD.dtype)
  return constrain(
    jnp.einsum('BD,DV->BV', x_BD, w_DV, preferred_element_type=jnp.float32), 'batch', 'vocab'
  )
