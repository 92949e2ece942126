"""AdamW by path against float64 numpy: clipping, decay, and what leaves the router bias alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.core import tree
from r1jax.optim.optimizer import AdamW, decay_mask, global_norm, is_balanced, is_decayed, make
from r1jax.optim.schedules import Constant, Linear

SPEC = AdamW(Linear(0.1, 0.01, steps=4, warmup=2), weight_decay=0.5)
BIAS = 'run0/block0/moe/router/bias'


@pytest.fixture(autouse=True, scope='module')
def x64():
  with jax.enable_x64(True):
    yield


def params(seed, size=1.0):
  """Leaves of a run of two stacked layers: everything has a leading axis, norms have two axes."""
  rng = np.random.default_rng(seed)

  def make_leaf(*shape):
    return jnp.asarray(size * rng.normal(size=shape))

  block = {
    'attention': {'kv_down': make_leaf(2, 3, 4), 'kv_norm': {'scale': make_leaf(2, 4)}},
    'moe': {
      'router': {'weight': make_leaf(2, 3, 4), 'bias': make_leaf(2, 4).astype(jnp.float32)},
      'shared': {'up_bias': make_leaf(2, 4)},
    },
  }
  return {'run0': {'block0': block}, 'embed': make_leaf(5, 3)}


DECAYED = {'embed', 'run0/block0/attention/kv_down', 'run0/block0/moe/router/weight'}


def oracle(spec, theta, grads, rates):
  """Textbook AdamW over named numpy leaves; the router bias stays."""
  m = dict.fromkeys(theta, 0.0)
  v = dict.fromkeys(theta, 0.0)
  for n, (grad, rate) in enumerate(zip(grads, rates), start=1):
    norm = np.sqrt(sum((g**2).sum() for name, g in grad.items() if name != BIAS))
    for name, g in grad.items():
      if name == BIAS:
        continue
      g = g * (1 if spec.clip is None else min(1, spec.clip / norm))
      m[name] = spec.b1 * m[name] + (1 - spec.b1) * g
      v[name] = spec.b2 * v[name] + (1 - spec.b2) * g**2
      step = m[name] / (1 - spec.b1**n) / (np.sqrt(v[name] / (1 - spec.b2**n)) + spec.eps)
      decay = spec.weight_decay * theta[name] if name in DECAYED else 0
      theta = {**theta, name: theta[name] - rate * (step + decay)}
  return theta


def run(spec, theta, grads):
  optimizer = make(spec, theta)
  state = optimizer.init(theta)
  for grad in grads:
    updates, state = optimizer.update(grad, state, theta)
    theta = optax.apply_updates(theta, updates)
  return theta, state


def named(x):
  return {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten_named(x).items()}


@pytest.mark.parametrize('clip', [None, 1.0, 1e6])
@pytest.mark.parametrize('size', [1e-3, 10.0])
def test_matches_the_textbook(clip, size):
  spec = dataclasses.replace(SPEC, clip=clip)
  theta, grads = params(0), [params(seed, size) for seed in (1, 2, 3, 4)]
  got, _ = run(spec, theta, grads)
  want = oracle(spec, named(theta), [named(g) for g in grads], [0.05, 0.1, 0.055, 0.01])
  for name, leaf in named(got).items():
    np.testing.assert_allclose(leaf, want[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('junk', [1e30, np.nan])
def test_the_router_bias_is_outside_of_everything(junk):
  """Whatever its gradient, it neither moves nor changes how the others move."""
  theta, grad = params(0), params(1)
  odd = tree.map_named(lambda path, g: g * junk if is_balanced(path) else g, grad)
  want, _ = run(SPEC, theta, [grad])
  got, state = run(SPEC, theta, [odd])
  jax.tree.map(np.testing.assert_array_equal, got, want)
  np.testing.assert_array_equal(*(tree.flatten_named(x)[BIAS] for x in (got, theta)))
  assert global_norm(grad) == global_norm(odd)
  assert not [path for path in tree.paths(state) if path.endswith(BIAS)]


def test_global_norm_is_over_the_trained_leaves():
  grad = params(1)
  want = np.sqrt(sum((g**2).sum() for name, g in named(grad).items() if name != BIAS))
  np.testing.assert_allclose(global_norm(grad), want, rtol=1e-12)
  assert global_norm({'router': {'bias': jnp.ones(3)}}) == 0


def test_decay_goes_by_name():
  assert {path for path, on in tree.flatten_named(decay_mask(params(0))).items() if on} == DECAYED
  paths = ['router/bias', 'run0/block0/moe/router/bias', 'moe/router/weight', 'router/bias_term']
  assert [is_balanced(path) for path in paths] == [True, True, False, False]
  paths = ['head', 'final_norm/scale', 'mtp/hidden_norm', 'q_bias', 'router/bias', 'moe/up']
  assert [is_decayed(path) for path in paths] == [True, False, False, False, False, True]


def test_one_optimizer_serves_jit_and_shapes():
  """Made from shapes alone; under jit it gives what it gives outside."""
  theta, grad = params(0), params(1)
  optimizer = make(SPEC, jax.eval_shape(lambda: theta))
  state = optimizer.init(theta)
  eager, jitted = (f(grad, state, theta)[0] for f in (optimizer.update, jax.jit(optimizer.update)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted, eager)


def test_frozen_leaves_may_be_absent():
  """The selected half of tree.split, None elsewhere, is a tree of parameters like any other."""
  theta, _ = tree.split(params(0), lambda path, _: 'attention' in path)
  grad, _ = tree.split(params(1), lambda path, _: 'attention' in path)
  got, _ = run(SPEC, theta, [grad])
  assert tree.paths(got) == tree.paths(theta)


def test_configs_refuse_what_cannot_work():
  for bad in ({'b1': 1.0}, {'b2': -0.1}, {'eps': 0.0}, {'weight_decay': -1.0}, {'clip': 0.0}):
    with pytest.raises(ValueError, match=next(iter(bad))):
      AdamW(Constant(1.0), **bad)
