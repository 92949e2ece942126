"""Mixture of experts: shared ones for every token, routed ones by the router; dropless.

    y = swiglu_shared(x) + Σ_a gate_a · swiglu_{expert_a}(x)          6·T·D·F·(shared + A) flops

On a mesh the routed part runs in shard_map: tokens are all-gathered over `expert`, each device
computes its own experts' share (weights gathered over `fsdp`, partial over `tensor`), and the sum
is scattered back to the tokens' owners. Traffic a layer and device: (expert − 1)/expert · T·D
numbers in and out.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.core.qarray import Weight, by_axes
from r1jax.kernels import grouped
from r1jax.model import router
from r1jax.model.config import Dense, MoE
from r1jax.model.primitives import SwiGLU, weight
from r1jax.model.types import Choices, LayerOut, Place
from r1jax.sharding import rules

GATE_UP = ('expert', 'embed', 'ffw')
DOWN = ('expert', 'ffw', 'embed')


def experts(
  x_TD: jax.Array,
  ids_TA: jax.Array,
  gates_TA: jax.Array,
  gate_EDF: Weight,
  up_EDF: Weight,
  down_EFD: Weight,
  implementation: str | None = None,
) -> jax.Array:
  """Σ_a gate_a · swiglu(x; expert_a); an id outside 0..E-1 contributes nothing."""
  E, A = gate_EDF.shape[0], ids_TA.shape[-1]
  ids_R = jnp.where((ids_TA >= 0) & (ids_TA < E), ids_TA, E).reshape(-1)
  groups = grouped.arrange(ids_R, E, implementation)
  x_SD = grouped.gather_rows(x_TD, groups)
  h_SF = jax.nn.silu(grouped.grouped_matmul(x_SD, gate_EDF, groups))
  h_SF = h_SF * grouped.grouped_matmul(x_SD, up_EDF, groups)
  y_SD = grouped.grouped_matmul(h_SF, down_EFD, groups)
  y_TAD = grouped.return_rows(y_SD, groups).reshape(-1, A, x_TD.shape[-1])
  return jnp.einsum('TAD,TA->TD', y_TAD, gates_TA.astype(y_TAD.dtype))


def whole(w: jax.Array, spec: jax.P) -> jax.Array:
  """Inside shard_map: the array gathered over `fsdp`, if its spec splits it there."""
  axes = tuple(spec)
  if 'fsdp' not in axes:
    return w
  return jax.lax.all_gather(w, 'fsdp', axis=axes.index('fsdp'), tiled=True)


def sharded_experts(
  x_BLD: jax.Array,
  ids_BLA: jax.Array,
  gates_BLA: jax.Array,
  gate_EDF: Weight,
  up_EDF: Weight,
  down_EFD: Weight,
) -> jax.Array:
  """`experts` over the mesh in context; without a mesh, on this device alone."""

  def flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    y_TD = experts(flat(x_BLD), flat(ids_BLA), flat(gates_BLA), gate_EDF, up_EDF, down_EFD)
    return y_TD.reshape(x_BLD.shape)

  weights = (gate_EDF, up_EDF, down_EFD)
  spec = functools.partial(rules.spec, table=rules.WEIGHTS)
  specs = tuple(by_axes(w, a, spec) for w, a in zip(weights, (GATE_UP, GATE_UP, DOWN)))

  def local(x: jax.Array, ids: jax.Array, g: jax.Array, *weights: Weight) -> jax.Array:
    x, ids, g = (jax.lax.all_gather(a, 'expert', axis=0, tiled=True) for a in (x, ids, g))
    gate, up, down = jax.tree.map(whole, weights, specs)
    mine = ids - jax.lax.axis_index('expert') * gate.shape[0]
    y = experts(flat(x), flat(mine), flat(g), gate, up, down).reshape(x.shape)
    return jax.lax.psum_scatter(
      jax.lax.psum(y, 'tensor'), 'expert', scatter_dimension=0, tiled=True
    )

  tokens = rules.fitting(x_BLD.shape, ('batch', 'length', None), mesh)
  run = jax.shard_map(local, in_specs=(tokens,) * 3 + specs, out_specs=tokens)
  return run(x_BLD, ids_BLA, gates_BLA, *weights)


class Router(nn.Module):
  """Scores and the selection bias (fp32, moved by load, never by the gradient)."""

  cfg: MoE

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
    E, w = self.cfg.experts, functools.partial(weight, self)
    s_BLE = router.scores(x_BLD, w('weight', (x_BLD.shape[-1], E), ('embed', 'router')), self.cfg)
    return s_BLE, w('bias', (E,), (None,), nn.initializers.zeros)


class MixtureOfExperts(nn.Module):
  """Shared plus routed experts; ids come from the router, or from `routes_BLA` in a replay."""

  cfg: MoE

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, place: Place, routes_BLA: jax.Array | None
  ) -> tuple[jax.Array, LayerOut]:
    c, D, w = self.cfg, x_BLD.shape[-1], functools.partial(weight, self)
    s_BLE, bias_E = Router(c, name='router')(x_BLD)
    choose = lambda s_BLE: router.select(s_BLE, bias_E, c)
    ids_BLA = routes_BLA
    if ids_BLA is None:
      ids_BLA = rules.by_rows(choose, s_BLE, axes=('batch', 'length'))
    valid_BL = place.segments_BL > 0
    y_BLD = sharded_experts(
      x_BLD,
      jnp.where(valid_BL[..., None], ids_BLA, c.experts),
      router.gates(s_BLE, ids_BLA, c),
      w('gate', (c.experts, D, c.ffw), GATE_UP),
      w('up', (c.experts, D, c.ffw), GATE_UP),
      w('down', (c.experts, c.ffw, D), DOWN),
    )
    if c.shared:
      y_BLD = y_BLD + SwiGLU(Dense(c.ffw * c.shared, c.std), name='shared')(x_BLD)
    load_E = router.load(ids_BLA, valid_BL, c.experts)
    return y_BLD, LayerOut(
      routes=Choices(ids_BLA), load_E=load_E, balance=router.balance(s_BLE, place.segments_BL, c)
    )
