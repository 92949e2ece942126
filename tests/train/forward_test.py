"""The terms beside the main loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.core import tree
from r1jax.data.batch import Row, batch
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.train import forward
from r1jax.train import state as states
from r1jax.train.forward import Auxiliary

DATA = batch(
  [[Row([1, 2, 3, 4], [0, 1, 1, 1]), Row([5, 6], [0, 1])], [], [Row([7, 8], [1, 1])]], 5, 1
)


def test_denominators_count_target_tokens_and_sequences_of_each_expert_layer(experiment):
  d = forward.denominators(DATA, jnp.float32(9), experiment.model)
  assert [float(x) for x in d] == [9, 5, 3 * 3]
  empty = jax.tree.map(np.zeros_like, DATA)
  assert [float(x) for x in forward.denominators(empty, jnp.float32(0), experiment.model)] == [
    1
  ] * 3


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
