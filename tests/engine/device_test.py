"""Weights, pages and programs of an engine."""

import jax
import numpy as np
import pytest

from r1jax.core.program import silent
from r1jax.engine.device import Device
from r1jax.engine.plan import Config
from r1jax.engine.sampling import Kinds
from tests.engine import mixed

CONFIG = Config(slots=2, pages=4, page=2, longest=8)


@pytest.fixture
def device():
  return Device(mixed.MIXED, CONFIG, None, None, None, silent)


def touch(params, memory, x_B, by, *, cfg, kinds, drafting):
  """A step that adds to the pages and tells what they hold."""
  memory = jax.tree.map(lambda m: m + by, memory)
  return memory, (x_B * 2, jax.tree.leaves(memory)[0].max())


def test_a_kind_of_step_and_shape_is_one_program_and_pages_live_from_step_to_step(device):
  device.load(mixed.params())
  seen = []
  for n in (2, 2, 3):
    told = np.arange(n, dtype=np.int32), np.float32(1)
    twice_B, most = device.fetch(device.call('a step', touch, Kinds(), told), 'decode')
    assert twice_B.tolist() == [2 * i for i in range(n)]
    seen.append(float(most))
  assert seen == [1, 2, 3] and device.compiled == 2
  assert device.busy == device.seconds['call'] + device.seconds['decode'] > 0


def test_lost_and_released_pages_are_blank_again(device):
  params = mixed.params()
  device.load(params)
  assert all(a is b for a, b in zip(jax.tree.leaves(device.params), jax.tree.leaves(params)))
  told = np.zeros(2, np.int32), np.float32(1)
  step = lambda: float(device.fetch(device.call('a step', touch, Kinds(), told), 'decode')[1])
  assert [step(), step()] == [1, 2]
  device.lose()
  assert step() == 1
  device.release()
  assert device.params is None
  device.load(params)
  assert step() == 1 and device.compiled == 1
