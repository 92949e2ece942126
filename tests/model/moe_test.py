"""Experts against a loop over experts; nothing dropped; sharded equals unsharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.core.qarray import Adapted, dense
from r1jax.kernels import grouped
from r1jax.model import moe
from r1jax.model.config import MoE
from r1jax.model.moe import MixtureOfExperts
from r1jax.model.types import Place
from r1jax.sharding.mesh import Mesh, make

B, L, D, F, E, A = 4, 6, 8, 6, 4, 2
CFG = MoE(F, experts=E, active=A, groups=2, active_groups=2, scale=2.5, std=0.5)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, L, D)).astype('f4')
G = RNG.normal(size=(B, L, D)).astype('f4')
SEGMENTS = np.ones((B, L), 'i4')
SEGMENTS[:, 4:] = 0
PLACE = Place(np.broadcast_to(np.arange(L), (B, L)), SEGMENTS)


def silu_glu(x, gate, up, down):
  h = x @ gate
  return (h / (1 + np.exp(-h)) * (x @ up)) @ down


@pytest.fixture(scope='module')
def params():
  boxed = jax.jit(MixtureOfExperts(CFG).init)(jax.random.key(0), X, PLACE, None)['params']
  bias = jnp.array([0.3, -0.4, 0.1, -0.2])
  return {**(p := meta.unbox(boxed)), 'router': {**p['router'], 'bias': bias}}


def run(params, x_BLD, segments_BL, routes_BLA=None):
  """((loss, (y, out)), gradients) of the module."""

  def loss(params, x_BLD):
    place = Place(PLACE.positions_BL, segments_BL)
    y_BLD, out = MixtureOfExperts(CFG).apply({'params': params}, x_BLD, place, routes_BLA)
    return jnp.sum(y_BLD * G) + out.balance.total, (y_BLD, out)

  return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x_BLD)


RUN = jax.jit(run)


@pytest.fixture(scope='module')
def done(params):
  return RUN(params, X, SEGMENTS)


def test_equals_a_loop_over_tokens_and_experts(params, done):
  (_, (y, out)), _ = done
  p = jax.tree.map(lambda a: np.asarray(a, 'f8'), params)
  s = 1 / (1 + np.exp(-X @ p['router']['weight']))
  want = silu_glu(X.astype('f8'), *(p['shared'][k] for k in ('gate', 'up', 'down')))
  load = np.zeros(E)
  for b, l in np.ndindex(B, L):
    if SEGMENTS[b, l]:
      ids = np.argsort(-(s[b, l] + p['router']['bias']))[:A]
      np.testing.assert_array_equal(out.routes.experts[b, l], ids)
      for e in ids:
        gate = 2.5 * s[b, l, e] / s[b, l, ids].sum()
        want[b, l] += gate * silu_glu(X[b, l], p['gate'][e], p['up'][e], p['down'][e])
        load[e] += 1
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(out.load_E, load)


def test_padding_is_neither_routed_nor_counted(params, done):
  (_, (_, out)), (grads, _) = done
  poisoned = np.where(SEGMENTS[..., None] > 0, X, 7.0).astype('f4')
  shared = jax.tree.map(jnp.zeros_like, params['shared'])
  alone = {**params, 'shared': shared}
  (_, (y, poisoned_out)), (poisoned_grads, d_x) = RUN(alone, poisoned, SEGMENTS)
  np.testing.assert_array_equal(y[:, 4:], np.zeros((B, 2, D)))
  np.testing.assert_array_equal(d_x[:, 4:], np.zeros((B, 2, D)))
  np.testing.assert_array_equal(poisoned_out.load_E, out.load_E)
  np.testing.assert_allclose(poisoned_out.balance, out.balance, rtol=1e-6)
  for name in ('gate', 'up', 'down', 'router'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      poisoned_grads[name],
      grads[name],
    )


def test_all_tokens_may_choose_the_same_experts(params):
  routes = np.broadcast_to(np.array([1, 3], 'i4'), (B, L, A))
  (_, (y, out)), _ = RUN(params, X, np.ones_like(SEGMENTS), routes)
  np.testing.assert_array_equal(out.load_E, [0, B * L, 0, B * L])
  p = jax.tree.map(np.asarray, params)
  s = 1 / (1 + np.exp(-X @ p['router']['weight']))[..., [1, 3]]
  gates = 2.5 * s / s.sum(-1, keepdims=True)
  want = silu_glu(X, *(p['shared'][k] for k in ('gate', 'up', 'down')))
  for a, e in enumerate((1, 3)):
    want += gates[..., a : a + 1] * silu_glu(X, p['gate'][e], p['up'][e], p['down'][e])
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', grouped.IMPLEMENTATIONS)
def test_ids_outside_the_experts_contribute_nothing(params, kind):
  x_TD, gates_TA = X[0], np.ones((L, A), 'f4')
  weights = [params[k] for k in ('gate', 'up', 'down')]
  ids_TA = np.array([[-1, E]] * 3 + [[0, -3]] * 3, 'i4')
  got = moe.experts(x_TD, ids_TA, gates_TA, *weights, implementation=kind)
  want = silu_glu(x_TD[3:], *(np.asarray(w)[0] for w in weights))
  np.testing.assert_allclose(got, [*np.zeros((3, D)), *want], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'mesh', [Mesh(fsdp=2, expert=2, tensor=2), Mesh(data=2, fsdp=1, expert=2, context=2)]
)
def test_sharded_equals_unsharded(params, done, mesh):
  with jax.set_mesh(make(mesh)):
    (loss, (y, out)), (grads, d_x) = jax.jit(run)(params, X, SEGMENTS)
  (want_loss, (want_y, want_out)), (want_grads, want_d_x) = done
  np.testing.assert_array_equal(out.routes.experts, want_out.routes.experts)
  np.testing.assert_array_equal(out.load_E, want_out.load_E)
  pairs = ((loss, y, grads, d_x), (want_loss, want_y, want_grads, want_d_x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pairs)


def adapted(params):
  """Every matrix of the module with a pair of rank 3 beside it."""

  def one(w):
    *lead, rows, columns = w.shape
    down, up = RNG.normal(size=(*lead, rows, 3)), RNG.normal(size=(*lead, 3, columns))
    return Adapted(w, jnp.asarray(down, 'f4'), jnp.asarray(up, 'f4'), 0.1)

  return jax.tree.map(lambda w: one(w) if w.ndim > 1 else w, params)


def test_adapted_experts_sharded_and_not_equal_merged_ones(params):
  low = adapted(params)
  merged = jax.tree.map(dense, low, is_leaf=lambda w: isinstance(w, Adapted))
  (want_loss, (want_y, want_out)), (want_grads, want_d_x) = RUN(merged, X, SEGMENTS)
  (loss, (y, out)), (grads, d_x) = RUN(low, X, SEGMENTS)
  np.testing.assert_array_equal(out.routes.experts, want_out.routes.experts)
  for got, want in ((loss, want_loss), (y, want_y), (d_x, want_d_x)):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
  for name in ('gate', 'up', 'down'):
    np.testing.assert_allclose(grads[name].base, want_grads[name], rtol=1e-4, atol=1e-5)
  with jax.set_mesh(make(Mesh(fsdp=2, expert=2, tensor=2))):
    (mesh_loss, (mesh_y, _)), (mesh_grads, mesh_d_x) = jax.jit(run)(low, X, SEGMENTS)
  pairs = ((mesh_loss, mesh_y, mesh_grads, mesh_d_x), (loss, y, grads, d_x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), *pairs)
