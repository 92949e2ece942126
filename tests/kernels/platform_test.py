"""Implementations by name and platform, and the dtype of sums."""

import jax.numpy as jnp
import pytest

from r1jax.kernels.platform import resolve, sums

KNOWN = ('ragged', 'blocks')


def test_the_platform_decides_where_no_name_is_given():
  assert resolve(None, {'cpu': 'blocks', 'gpu': 'blocks', '*': 'ragged'}, KNOWN) == 'blocks'
  assert resolve(None, {'*': 'ragged'}, KNOWN) == 'ragged'


def test_a_known_name_wins_over_the_platform():
  assert resolve('ragged', {'*': 'blocks'}, KNOWN) == 'ragged'


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(NotImplementedError, match=r"'mosaic'; known: ragged, blocks"):
    resolve('mosaic', {'*': 'blocks'}, KNOWN)


@pytest.mark.parametrize('given, want', [('bfloat16', 'float32'), ('float32', 'float32')])
def test_sums_are_kept_in_fp32_at_least(given, want):
  assert sums(jnp.zeros(1, given)) == want
