"""Mixtures: exact shares in every window, a number for every document, an order a window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import config
from r1jax.core.config import ConfigError
from r1jax.data import mix
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Text, Worked
from r1jax.records.jsonl import Jsonl
from r1jax.records.parquet import Parquet


def mixture(*weights, window=1000):
  return Mixture(tuple(Part(Worked(), w) for w in weights), window)


@pytest.mark.parametrize(
  'weights, window, expected',
  [
    ((1,), 10, (10,)),
    ((85, 10, 5), 1000, (850, 100, 50)),
    ((0.85, 0.1, 0.05), 20, (17, 2, 1)),
    ((1, 1, 1), 10, (4, 3, 3)),  # equal remainders: the earlier part first
    ((2, 1), 10, (7, 3)),
    ((0.29, 0.71), 100, (29, 71)),
  ],
)
def test_shares_of_a_window_by_largest_remainder(weights, window, expected):
  assert mix.counts(mixture(*weights, window=window)) == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_every_window_has_its_shares_and_numbers_run_on(shares, seed):
  size, windows, last = sum(shares), 3, [-1] * len(shares)
  for position in range(size * windows):
    part, number = mix.pick(tuple(shares), position, seed, 0)
    assert number == last[part] + 1
    last[part] = number
    if (position + 1) % size == 0:
      assert last == [(position + 1) // size * share - 1 for share in shares]


def test_windows_seeds_and_shards_have_their_own_order():
  order = lambda window, *key: tuple(
    mix.pick((5, 3, 2), 10 * window + i, *key)[0] for i in range(10)
  )
  orders = {order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)}
  assert len(orders) == 4
  assert order(7, 0, 0) == order(7, 0, 0)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: Mixture(()), 'parts is empty; expected at least one Part(source, weight)'),
    (lambda: mixture(1, window=0), 'window=0; expected 1 or more'),
    (lambda: Mixture((Part(Worked()),), block=0), 'block=0; expected 1 or more'),
    (lambda: Mixture((Part(Worked()),), shards=0), 'shards=0; expected 1 or more'),
    (lambda: Part(Worked(), 0.0), 'weight=0.0; expected a number above 0'),
    (lambda: Part(Worked(), float('nan')), 'weight=nan; expected a number above 0'),
    (
      lambda: mixture(999, 1, window=100),
      'parts[1] with weight 1 gets no document in a window of 100; raise window or the weight',
    ),
  ],
)
def test_what_cannot_be_mixed_is_said(make, message):
  with pytest.raises(ConfigError) as error:
    make()
  assert str(error.value) == message


def test_a_mixture_is_a_config():
  made = Mixture((Part(Text(Jsonl('a.jsonl'), share=(0.0, 0.99)), 3.0), Part(Worked(7))), shards=2)
  assert config.from_dict(Mixture, config.to_dict(made)) == made
  pairs = [('parts[0].source.records.type', 'Parquet'), ('parts[1].weight', '2')]
  changed = config.override_all(made, pairs)
  assert changed.parts[0].source.records == Parquet('a.jsonl')
  assert changed.parts[1] == Part(Worked(7), 2.0)
