"""Sums with weights: the mean of parts is the mean of the whole."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import metrics


def test_add_sums_pairs_and_keeps_names_of_either_side():
  a = {'loss': (jnp.float32(6.0), jnp.float32(2.0)), 'kl': (1.0, 4.0)}
  b = {'loss': (jnp.float32(3.0), 1.0), 'length': metrics.scalar(7.0)}
  assert metrics.finish(metrics.add(a, b)) == {'loss': 3.0, 'kl': 0.25, 'length': 7.0}


def test_weight_zero_is_nan():
  out = metrics.finish({'kl': (jnp.zeros(()), jnp.zeros(())), 'x': (1.0, 0.0)})
  assert math.isnan(out['kl']) and math.isnan(out['x'])
  assert all(type(v) is float for v in out.values())


def test_prefix_renames_only():
  assert metrics.prefix({'reward': (1.0, 2.0)}, 'rl/') == {'rl/reward': (1.0, 2.0)}


def test_pairs_pass_through_jit():
  added = jax.jit(metrics.add)({'x': (1.0, 2.0)}, {'x': (3.0, 6.0)})
  assert metrics.finish(added) == {'x': 0.5}


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=12), st.integers(0, 12))
def test_any_split_gives_the_mean_of_the_whole(values, at):
  def pair(part):
    return {'x': (float(sum(part)), float(len(part)))}

  both = metrics.add(pair(values[:at]), pair(values[at:]))
  assert metrics.finish(both)['x'] == np.mean(values, dtype=np.float64)
