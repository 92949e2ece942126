"""Rotary embedding in closed form, its relative law, and YaRN from the formulas of the recipe."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.config import Rope, Yarn
from r1jax.model.rope import active, frequencies, rotate, softmax_scale

P = 8
RNG = np.random.default_rng(0)
INTERLEAVED = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where the pairs (i, i + P/2) go


def at(x_P, position, rope):
  """One vector rotated."""
  x = jnp.asarray(x_P, jnp.float32)[None, None, None]
  return ROTATE(x, jnp.asarray([[position]]), rope)[0, 0, 0]


ROTATE = jax.jit(rotate, static_argnums=2)


def test_closed_form():
  x_P = RNG.normal(size=P)
  z = (x_P[0::2] + 1j * x_P[1::2]) * np.exp(1j * 5 * 100.0 ** (-np.arange(0, P, 2) / P))
  want = np.stack([z.real, z.imag], -1).reshape(P)
  np.testing.assert_allclose(at(x_P, 5, Rope(100.0)), want, rtol=1e-5, atol=1e-6)


def test_contract_07_both_layouts_are_one_rotation_up_to_a_permutation():
  x_BLNP = jnp.asarray(RNG.normal(size=(2, 3, 2, P)), jnp.float32)
  positions = jnp.asarray(RNG.integers(0, 99, (2, 3)))
  halves = rotate(x_BLNP, positions, Rope(interleaved=False))
  pairs = rotate(x_BLNP[..., INTERLEAVED], positions, Rope(interleaved=True))
  np.testing.assert_allclose(pairs, halves[..., INTERLEAVED], rtol=1e-6, atol=1e-6)
  assert not np.allclose(rotate(x_BLNP, positions, Rope()), halves, atol=1e-2)


@pytest.mark.parametrize('rope', [Rope(), Rope(interleaved=False), Rope(scaling=Yarn())])
@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_scores_depend_on_the_distance_alone(rope, p, q, shift):
  a_P, b_P = RNG.normal(size=(2, P))
  score = lambda p, q: float(np.dot(at(a_P, p, rope), at(b_P, q, rope)))
  assert math.isclose(score(p, q), score(p + shift, q + shift), rel_tol=1e-3, abs_tol=1e-3)


def yarn_by_the_recipe(theta, width, y):
  """Written from recipe.md and the paper: one frequency at a time."""
  find = lambda turns: width * math.log(y.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
  low = max(math.floor(find(y.beta_fast)), 0)
  high = min(math.ceil(find(y.beta_slow)), width - 1)
  out = []
  for i in range(width // 2):
    omega = theta ** (-2 * i / width)
    keep = 1 - min(max((i - low) / (high - low), 0), 1)
    out.append(omega * keep + omega / y.factor * (1 - keep))
  return np.array(out)


@pytest.mark.parametrize('width, theta', [(64, 10_000.0), (128, 1e6), (16, 10_000.0)])
def test_contract_07_yarn_frequencies(width, theta):
  yarn = Yarn()
  got = frequencies(Rope(theta, scaling=yarn), width)
  plain = theta ** (-np.arange(0, width, 2) / width)
  np.testing.assert_allclose(got, yarn_by_the_recipe(theta, width, yarn), rtol=1e-13)
  assert got[0] == plain[0]  # the fastest is kept, the slowest divided
  np.testing.assert_allclose(got[-1], plain[-1] / 40, rtol=1e-13)


def test_yarn_with_one_dimension_between_the_bounds_is_a_step():
  yarn = Yarn(original=8, beta_fast=1.0, beta_slow=1.0)
  got = frequencies(Rope(scaling=yarn), 4)
  np.testing.assert_allclose(got, [1, 0.01 / 40], rtol=1e-13)


def test_contract_07_yarn_scale():
  mscale = 0.1 * math.log(40) + 1
  assert math.isclose(mscale, 1.3689, rel_tol=1e-4)
  assert math.isclose(softmax_scale(Rope(scaling=Yarn()), 192), 192**-0.5 * mscale**2)
  assert math.isclose(softmax_scale(Rope(), 192), 192**-0.5)


def test_contract_07_yarn_is_inactive_up_to_the_original_length():
  short = Rope(scaling=Yarn(length=4096))
  assert not active(short.scaling)
  assert active(Yarn(length=4097))
  np.testing.assert_array_equal(frequencies(short, 64), frequencies(Rope(), 64))
  assert softmax_scale(short, 64) == softmax_scale(Rope(), 64)


def test_cos_and_sin_are_not_scaled():
  x_P = RNG.normal(size=P)
  norm = np.linalg.norm(at(x_P, 77, Rope(scaling=Yarn())))
  np.testing.assert_allclose(norm, np.linalg.norm(x_P), rtol=1e-5)


def test_angles_are_fp32_in_bfloat16():
  x = jnp.zeros((1, 1, 1, P), jnp.bfloat16).at[..., 0].set(1)
  got = rotate(x, jnp.asarray([[1001]]), Rope())  # in bfloat16 1001 would be 1000
  assert got.dtype == jnp.bfloat16
  want = [math.cos(1001), math.sin(1001)]
  np.testing.assert_allclose(got[0, 0, 0, :2].astype(jnp.float32), want, atol=4e-3)
