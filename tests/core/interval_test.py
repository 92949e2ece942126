"""Wilson's interval against published values, and its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.interval import wilson


@pytest.mark.parametrize(
  ('k', 'n', 'low', 'high'),
  [
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_known_values(k, n, low, high):
  assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_an_interval_around_k_of_n_and_symmetric(kn):
  k, n = kn
  low, high = wilson(k, n)
  assert 0 <= low <= high <= 1
  assert n == 0 or (low <= k / n + 1e-12 and k / n <= high + 1e-12)
  assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_refuses_what_is_no_proportion():
  with pytest.raises(ValueError, match='3 of 2'):
    wilson(3, 2)
