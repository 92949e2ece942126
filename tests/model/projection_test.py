"""A projection is its matrix, and starts without changing the size of what passes."""

import jax
import numpy as np

from r1jax.model.projection import Projection, Widths
from r1jax.sharding import place


def test_it_is_a_matrix_of_the_widths_that_keeps_sizes():
  x_BLD = np.random.default_rng(0).normal(size=(4, 32, 64)).astype('f4')
  module = Projection(Widths(64, 48))
  params = place.init(module, jax.random.key(0), None, x_BLD)
  assert {name: w.shape for name, w in params.items()} == {'weight': (64, 48)}
  got = module.apply({'params': params}, x_BLD)
  np.testing.assert_allclose(got, x_BLD @ np.asarray(params['weight']), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.square(got).mean(), 1, rtol=0.1)
