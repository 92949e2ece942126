"""The terms beside the main loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.algos.length_fit import LengthFit
from r1jax.core import tree
from r1jax.data.batch import Row, batch
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place
from r1jax.train import forward
from r1jax.train import state as states
from r1jax.train.forward import Auxiliary

DATA = batch(
  [[Row([1, 2, 3, 4], [0, 1, 1, 1]), Row([5, 6], [0, 1])], [], [Row([7, 8], [1, 1])]], 5, 1
)


def test_denominators_count_target_tokens_and_sequences_of_each_expert_layer(experiment):
  d = forward.denominators(DATA, jnp.float32(9), experiment.model)
  assert [float(x) for x in d] == [9, 5, 3 * 3, 1]
  empty = jax.tree.map(np.zeros_like, DATA)
  assert [float(x) for x in forward.denominators(empty, jnp.float32(0), experiment.model)] == [
    1
  ] * 4


DENSE = Layer(GQA(heads=2, kv_heads=1, head=8, std=0.2), Dense(16, std=0.2))
SMALL = ModelConfig(vocab=16, embed=16, layers=(DENSE,), mtp=(DENSE,), std=0.3, remat='none')


def test_detached_prediction_modules_learn_without_moving_the_trunk():
  params = states.init_params(Transformer(SMALL), 0, None, dummy_inputs(SMALL))
  aux = Auxiliary(mtp=0.5, detach_mtp=True, balance=0.0)

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, detach):
    def loss(params):
      d = forward.denominators(DATA, jnp.float32(5), SMALL)
      out, _ = forward.run(params, SMALL, DATA, Sampling(), None, detach)
      a = Auxiliary(aux.mtp, detach, aux.balance)
      return forward.auxiliary(params, SMALL, DATA, out, a, d)[0]

    return jax.grad(loss)(params)

  def moved(detach):
    named = tree.flatten_named(gradient(params, detach))
    return {path.split('/')[0] for path, x in named.items() if np.abs(x).max() > 0}

  assert moved(True) == {'mtp0'}
  assert moved(False) == {'mtp0', 'embedding', 'head', 'final_scale', 'run0'}


def fitted(params, detach, cut_B=None):
  """(length loss, the parts of the parameters that it moves)"""
  aux = Auxiliary(mtp=0.0, balance=0.0, length=LengthFit(0.5, detach))

  def loss(params):
    d = forward.denominators(DATA, jnp.float32(5), SMALL)
    out, _ = forward.run(params, SMALL, DATA, Sampling(), None, False)
    total, metrics = forward.auxiliary(params, SMALL, DATA, out, aux, d, cut_B)
    return total, metrics['length_loss']

  (total, metric), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(total, 0.5 * metric[0] / 5, rtol=1e-6)
  named = tree.flatten_named(grads)
  return metric, {path.split('/')[0] for path, x in named.items() if np.abs(x).max() > 0}


def test_the_length_fit_starts_at_one_token_left_and_moves_the_trunk_unless_detached():
  params = states.init_params(Transformer(SMALL), 0, None, dummy_inputs(SMALL))
  ((name, (module, inputs)),) = forward.heads(Auxiliary(length=LengthFit()), SMALL).items()
  fresh = place.init(module, jax.random.key(0), None, *inputs)
  assert not any(np.any(x) for x in jax.tree.leaves(fresh))
  (total, weight), moved = fitted(params | {name: fresh}, detach=False)
  np.testing.assert_allclose(total, (np.log([3, 2, 1, 1, 1]) ** 2).sum(), rtol=1e-6)
  assert weight == 5 and moved == {name}  # of a head of zeros the trunk feels nothing
  ones = jax.tree.map(jnp.ones_like, fresh)
  assert fitted(params | {name: ones}, detach=True)[1] == {name}
  assert fitted(params | {name: ones}, detach=False)[1] > {name, 'run0', 'embedding'}
  (total, weight), _ = fitted(params | {name: fresh}, True, jnp.array([True, False, False]))
  assert (float(total), float(weight)) == (0, 1)  # the row that was cut has no length
