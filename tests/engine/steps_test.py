"""The compiled steps: who lives is advanced, an eager burst ends with the first row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.engine import steps
from r1jax.engine.sampling import RequestSampling, controls
from r1jax.model import cache as caches
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

CFG = ModelConfig(
  17, 16, (Layer(GQA(2, 1, 8, std=0.5), Dense(16, std=0.5)),), std=0.8, remat='none'
)
SETTINGS, KINDS = controls([RequestSampling(temperature=0.0)] * 3)
TABLE = np.arange(12, dtype=np.int32).reshape(3, 4)
ROWS = steps.Rows(TABLE, np.zeros((3, 2), np.uint32), SETTINGS)
PROMPTS = np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0]], np.int32)
LENGTHS = np.array([3, 2, 1], np.int32)


@pytest.fixture(scope='module')
def filled(quick_compilation):
  """(params, cache, the tokens behind the prompts)."""
  params = place.init(Transformer(CFG), jax.random.key(0), None, dummy_inputs(CFG))
  cache = caches.paged(CFG, 12, 2)
  fill = jax.jit(functools.partial(steps.prefill, cfg=CFG, kinds=KINDS))
  cache, made = fill(params, cache, PROMPTS, np.zeros(3, np.int32), LENGTHS, ROWS)
  return params, cache, made.drawn.token_B


def burst(filled, left, most=4, stops=(), eager=False):
  params, cache, token_B = filled
  f = jax.jit(functools.partial(steps.decode, cfg=CFG, kinds=KINDS, stops=stops, most=5))
  left_B = np.array(left, np.int32)
  return jax.device_get(
    f(params, cache, token_B, LENGTHS, left_B, ROWS, np.int32(most), jnp.asarray(eager))[1]
  )


def test_only_rows_that_live_write_and_not_beyond_what_is_left(filled):
  whole, part = burst(filled, [4, 4, 4]), burst(filled, [3, 0, 9])
  assert whole.count_B.tolist() == [4, 4, 4] and part.count_B.tolist() == [3, 0, 4]
  for row, n in ((0, 3), (2, 4)):  # whoever lives beside a row does not enter
    np.testing.assert_array_equal(part.token_BN[row, :n], whole.token_BN[row, :n])
  assert not part.token_BN[1].any() and not part.token_BN[0, 3:].any()


def test_an_eager_burst_ends_with_the_first_row_that_does(filled):
  assert burst(filled, [4, 1, 4], eager=True).count_B.tolist() == [1, 1, 1]
  assert burst(filled, [4, 1, 4]).count_B.tolist() == [4, 1, 4]
  assert burst(filled, [9, 9, 9], most=2, eager=True).count_B.tolist() == [2, 2, 2]


def test_a_stop_token_is_written_and_nothing_behind_it(filled):
  free = burst(filled, [4, 4, 4])
  stop = int(free.token_BN[0, 1])
  made = burst(filled, [4, 4, 4], stops=(stop,))
  for row in range(3):
    written = free.token_BN[row, :4].tolist()
    n = written.index(stop) + 1 if stop in written else 4
    assert made.count_B[row] == n and made.stopped_B[row] == (stop in written)
    np.testing.assert_array_equal(made.token_BN[row, :n], written[:n])
  assert made.stopped_B[0]
