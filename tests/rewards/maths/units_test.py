from fractions import Fraction

import pytest

from r1jax.rewards.maths.units import unit


@pytest.mark.parametrize(
  ('text', 'count', 'scale', 'dimensions'),
  [
    ('cm', 1, Fraction(1, 100), {'m': 1}),
    ('Inches', 1, Fraction(254, 10000), {'m': 1}),
    ('cubic feet', 1, Fraction(3048, 10000) ** 3, {'m': 3}),
    ('m/s^2', 1, 1, {'m': 1, 's': -2}),
    ('miles per hour', 1, Fraction(1609344, 1000) / 3600, {'m': 1, 's': -1}),
    ('million dollars', 10**6, 1, {'dollar': 1}),
    ('dozen', 12, 1, {}),
    ('units', 1, 1, {}),
  ],
)
def test_units(text, count, scale, dimensions):
  assert unit(text) == (count, (scale, tuple(sorted(dimensions.items()))))


@pytest.mark.parametrize('text', ['apples', 'cm cats', '$^2', 'or', 'm^4'])
def test_what_is_no_unit(text):
  assert unit(text) is None
