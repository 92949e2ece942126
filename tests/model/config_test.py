"""Layers as runs, and configs that cannot be."""

import hypothesis
import hypothesis.strategies as st
import pytest

from r1jax.core import config
from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Fixed,
  Layer,
  ModelConfig,
  MoE,
  Rope,
  Run,
  runs,
)

GLOBAL = Layer(GQA(4, 2, 8), Dense(16))
LOCAL = Layer(GQA(4, 2, 8, rotary=Rope(theta=5e5, interleaved=False)), Dense(16))
EXPERTS = Layer(GQA(4, 2, 8), MoE(16, experts=4, active=2))


def flat(table):
  return sum((run.period * run.repeats for run in table), ())


@hypothesis.given(st.lists(st.integers(0, 2), max_size=24).map(tuple), st.integers(1, 8))
def test_runs_hold_the_layers_in_order(layers, longest):
  table = runs(layers, longest)
  assert flat(table) == layers
  assert all(1 <= len(run.period) <= longest and run.repeats >= 1 for run in table)
  assert all(len(run.period) == 1 for run in table if run.repeats == 1)


@hypothesis.given(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), st.integers(2, 5))
def test_a_repeated_period_is_one_run(period, repeats):
  (run,) = runs(period * repeats)
  assert len(run.period) <= len(period)
  assert flat((run,)) == period * repeats


@pytest.mark.parametrize(
  'layers, want',
  [
    ((GLOBAL,) * 3 + (EXPERTS,) * 58, (Run((GLOBAL,), 3), Run((EXPERTS,), 58))),
    (((LOCAL,) * 5 + (GLOBAL,)) * 4, (Run((LOCAL,) * 5 + (GLOBAL,), 4),)),
    ((GLOBAL, EXPERTS, LOCAL), (Run((GLOBAL,), 1), Run((EXPERTS,), 1), Run((LOCAL,), 1))),
    ((GLOBAL,), (Run((GLOBAL,), 1),)),
  ],
)
def test_runs_of(layers, want):
  assert runs(layers) == want


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: GQA(4, 3, 8), r'heads=4 must be a multiple of kv_heads=3'),
    (lambda: MoE(8, experts=6, active=2, groups=4), 'split evenly into groups'),
    (lambda: MoE(8, experts=8, active=2, groups=4, active_groups=5), 'active_groups be within'),
    (lambda: MoE(8, experts=8, active=2, groups=4, active_groups=0), 'active_groups be within'),
    (lambda: MoE(8, experts=8, active=5, groups=4, active_groups=2), 'active=5 .* do not fit'),
    (lambda: ModelConfig(8, 8, ()), 'at least one layer'),
    (lambda: Blocks(compress=24), 'compress=24 must be a multiple of stride=16'),
    (lambda: Blocks(select=72), 'select=72 must be a multiple of stride=16'),
    (lambda: Blocks(selected=2), 'selected=2 blocks; expected 3 at least: first=1 and local=2'),
    (lambda: Blocks(selected=1, first=0, local=1), 'never fewer than 2'),
    (lambda: Blocks(stride=0), 'stride of 1 or more'),
    (lambda: Blocks(window=0), 'window=0 was given'),
    (lambda: MLA(4, 8, 8, 8, 16, pattern=Blocks()), 'use it on GQA, or on MLA .* TopK'),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_configs_are_hashable():
  assert len({GLOBAL, LOCAL, EXPERTS, Layer(MLA(4, 8, 8, 8, 16), Dense(16)), GLOBAL}) == 4


@pytest.mark.parametrize('window, keys', [(0.7, 0.7), (1.5, -0.5)])
def test_fixed_weights_are_shares(window, keys):
  with pytest.raises(ValueError, match='sum to 1'):
    Fixed(window, keys)


def test_key_ids_lie_in_the_vocabulary():
  with pytest.raises(ValueError, match='key_ids: 8 is not in the vocabulary of 8'):
    ModelConfig(8, 4, (GLOBAL,), key_ids=(3, 8))


def test_blocks_from_the_command_line():
  cfg = ModelConfig(8, 8, (GLOBAL, EXPERTS))
  at = 'layers[*].attention.pattern'
  # What holds together only in the end may come in any order.
  given = [('type', 'Blocks'), ('compress', '4'), ('stride', '2'), ('select', '8'), ('window', '6')]
  made = config.override_all(cfg, [(f'{at}.{name}', text) for name, text in given])
  want = Blocks(compress=4, stride=2, select=8, window=6)
  assert [layer.attention.pattern for layer in made.layers] == [want] * 2
  with pytest.raises(ValueError, match='compress=4 must be a multiple of stride=16'):
    config.override_all(cfg, [(f'{at}.{name}', text) for name, text in given[:2]])
