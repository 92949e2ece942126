"""The Mosaic GPU kernel: against float64 in jax's interpreter, and lowered for an H200."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.kernels.paged import gpu, reference
from r1jax.kernels.paged.memory import Int8, memory_of
from r1jax.kernels.paged.visible import Visible
from tests.kernels.cuda import INTERPRET, lowered, without_races
from tests.kernels.paged import pool


def run(q, keys, values, layer, visible, width, cap=None, interpret=False):
  memory = memory_of(keys, values, q.shape[-1], width)
  assert gpu.refusal(q, memory, interpret) is None
  return gpu.paged_attention(q, memory, layer, visible, pool.SCALE, cap, interpret)


@pytest.fixture
def small(monkeypatch):
  """Widths that wgmma takes, in few stages of few places; MLA's values over two warpgroups."""
  sizes = {'WIDTH': 64, 'VALUE': 64, 'LATENT': (128, 64), 'SPARE': 64, 'PAGES': 4}
  for name, value in sizes.items():
    monkeypatch.setattr(pool, name, value)
  for name, value in {'PLACES': (16,), 'STAGES': 2, 'LEAST': 2, 'COLUMNS': 64}.items():
    monkeypatch.setattr(gpu, name, value)

  def choose(size, blocks):
    monkeypatch.setattr(pool, 'SIZE', size)
    monkeypatch.setattr(gpu, 'BLOCKS', blocks)

  return choose


@pytest.mark.parametrize(
  'kind, size, blocks, cap',
  [
    ('grouped', 8, 1, 1.5),
    ('grouped int8', 32, 9, None),
    ('latent', 16, 9, None),
    ('latent int8', 16, 1, None),
  ],
)
def test_lists_of_pages_in_the_interpreter(kind, size, blocks, cap, small):
  small(size, blocks)
  rng = np.random.default_rng(1)
  q, keys, values, width = pool.draw(rng, kind, 2)
  visible = pool.lists(rng, 2, 64 // size + 1)
  seen = pool.places(visible)
  keys, values = pool.poisoned((keys, values), seen)
  call = functools.partial(run, width=width, cap=cap, interpret=INTERPRET)
  got = without_races(call, q, keys, values, 1, visible)
  pool.check(got, pool.oracle(q, keys, values, width, 1, seen, cap))
