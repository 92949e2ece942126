"""Schedules at their corners, in closed form; n = count + 1 is the number of the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.optim.schedules import Constant, Cosine, Linear, Trapezoid, schedule

TRAPEZOID = Trapezoid(peak=2.0, end=0.2, warmup=4, hold=6, decay=10, tail=5, last=0.1)


@pytest.mark.parametrize(
  'spec, rates',
  [
    (Constant(3.0), {1: 3.0, 2: 3.0, 10**6: 3.0}),
    (Constant(3.0, warmup=1), {1: 3.0, 2: 3.0}),
    (Constant(3.0, warmup=3), {1: 1.0, 2: 2.0, 3: 3.0, 4: 3.0}),
    (Linear(2.0, 1.0, steps=8, warmup=4), {1: 0.5, 4: 2.0, 5: 1.75, 6: 1.5, 8: 1.0, 99: 1.0}),
    (Linear(1.0, 0.0, steps=4), {1: 0.75, 2: 0.5, 4: 0.0, 5: 0.0}),
    (Cosine(2.0, 1.0, steps=8, warmup=4), {1: 0.5, 4: 2.0, 6: 1.5, 8: 1.0, 9: 1.0, 99: 1.0}),
    (Cosine(2.0, 0.0, steps=3), {1: 1.5, 2: 0.5, 3: 0.0}),
    (TRAPEZOID, {1: 0.5, 4: 2.0, 10: 2.0, 15: 1.1, 20: 0.2, 25: 0.2, 26: 0.1, 99: 0.1}),
    (Trapezoid(2.0, 0.2, warmup=0, hold=1, decay=0), {1: 2.0, 2: 0.2, 9: 0.2}),
  ],
)
def test_corners(spec, rates):
  n = np.array(list(rates))
  want = list(rates.values())
  np.testing.assert_allclose(schedule(spec)(jnp.asarray(n - 1)), want, rtol=1e-6, atol=1e-7)


def test_r1_s_sft_cosine():
  """5e-5 → 5e-6 in the middle of its way: the mean of both."""
  got = schedule(Cosine(5e-5, 5e-6, steps=1000))(499)
  np.testing.assert_allclose(got, (5e-5 + 5e-6) / 2, rtol=1e-5)


def test_traced_counts_give_the_same_as_python_ints():
  f = schedule(TRAPEZOID)
  traced = jax.jit(f)(jnp.arange(30))
  np.testing.assert_allclose([f(count) for count in range(30)], traced, rtol=1e-6)


@given(
  peak=st.floats(1e-6, 1e-2), share=st.floats(0, 1), warmup=st.integers(0, 20), n=st.integers(1, 60)
)
def test_rates_rise_in_the_warm_up_and_fall_after_it(peak, share, warmup, n):
  for spec in (
    Constant(peak, warmup),
    Linear(peak, peak * share, warmup + 30, warmup),
    Cosine(peak, peak * share, warmup + 30, warmup),
    Trapezoid(peak, peak * share, warmup, 5, 10, 3, peak * share / 2),
  ):
    now, then = (float(schedule(spec)(jnp.asarray(n - 1 + k))) for k in (0, 1))
    assert 0 <= now <= peak * (1 + 1e-6)
    assert now <= then * (1 + 1e-6) if n < warmup else then <= now * (1 + 1e-6)


def test_lengths_are_checked():
  with pytest.raises(ValueError, match='warmup is -1'):
    Constant(1.0, warmup=-1)
  with pytest.raises(ValueError, match='steps is 5, warmup is 5'):
    Cosine(1.0, 0.1, steps=5, warmup=5)
  with pytest.raises(ValueError, match='decay is -2'):
    Trapezoid(1.0, 0.1, warmup=0, hold=0, decay=-2)
