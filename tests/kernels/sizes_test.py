"""Measured sizes go before the rules, for their device and shape class alone."""

import pytest

from r1jax.kernels import sizes
from r1jax.kernels.attention import blocks
from r1jax.kernels.attention.blocks import Blocks
from r1jax.kernels.attention.lists import Band, Sizes
from r1jax.kernels.measured import MEASURED

WINDOW = 'attention/xla, band window 64, group 4, width 64, length long'


@pytest.mark.parametrize(
  'band, seen',
  [
    (Band(), 'full'),
    (Band(0, 64), 'window 64'),
    (Band(0, 65), 'window 128'),
    (Band(16, 64), 'window 64'),
    (Band(512), 'before'),
  ],
)
def test_a_band_belongs_to_a_class(band, seen):
  got = sizes.banded('tpu', band, 3, 192, 8192)
  assert got == f'attention/tpu, band {seen}, group 4, width 256, length short'


@pytest.mark.parametrize('n, holds', [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_numbers_share_a_power_of_two(n, holds):
  assert sizes.bucket(n) == holds


def test_what_was_measured_goes_before_the_rule(monkeypatch):
  monkeypatch.setitem(sizes.MEASURED, 'TPU v4', {WINDOW: (32, 64, 64, 64, 128, 32), 'op': (7,)})
  of = lambda length, device: blocks.blocks_of('xla', Band(0, 64), 4, length, length, 64, device)
  rule = blocks.default_blocks('xla', Band(0, 64), 4, 16384, 16384)
  assert of(16384, 'TPU v4') == Blocks(Sizes(32, 64), Sizes(64, 64), Sizes(128, 32))
  assert of(16384, 'TPU v5') == rule
  assert of(4096, 'TPU v4') == blocks.default_blocks('xla', Band(0, 64), 4, 4096, 4096)
  assert sizes.measured('op', 'TPU v4') == (7,)
  assert sizes.measured('op', 'TPU v5') is None


def test_a_chunk_is_measured_or_the_rules(monkeypatch):
  assert sizes.chunk(32, 'no such op', list=100) == 32
  monkeypatch.setitem(sizes.MEASURED, 'cpu', {'selected, list 128': (8,)})
  assert sizes.chunk(32, 'selected', list=100) == 8


def test_measured_blocks_are_no_greater_than_the_lengths(monkeypatch):
  short = sizes.banded('xla', Band(), 1, 64, 100)
  monkeypatch.setitem(sizes.MEASURED, 'cpu', {short: (512,) * 6})
  assert blocks.blocks_of('xla', Band(), 1, 100, 3, 64) == Blocks(*(Sizes(128, 16),) * 3)


def test_the_table_holds_sizes_that_kernels_take():
  for device, table in MEASURED.items():
    for what, found in table.items():
      assert all(isinstance(n, int) and n > 0 for n in found), (device, what)
      assert len(found) == (6 if what.startswith('attention/') else 1), (device, what)
      if what.startswith('attention/'):
        assert all(n == sizes.bucket(n) or n % 128 == 0 for n in found), (device, what)
