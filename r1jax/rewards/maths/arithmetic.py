"""Numbers as answers have them: exact fractions while every step is rational, else 60 digits.

Integers beyond 2^15 bits, and powers to match, are not computed: they are nan, which equals
nothing.
"""

import functools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1jax.rewards.maths.errors import UnreadableError

_MAX_BITS = 1 << 15

MIXED = re.compile(r'([+-]?)([0-9]+) ([0-9]+)/([0-9]+)')

_DECIMAL = r'[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)'
_NUMBER = re.compile(rf'{_DECIMAL}(?:[eE][+-]?[0-9]{{1,3}})?')
_RATIO = re.compile(rf'({_DECIMAL})/({_DECIMAL})')
_FRAC = re.compile(r'([+-]?)\\[dt]?frac(?:\{([+-]?[0-9]+)\}\{([+-]?[0-9]+)\}|([0-9])([0-9]))')
_REPEAT = re.compile(r'([+-]?)([0-9]+)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}')


def number(text: str) -> Fraction | None:
  """The value of a canonical integer, decimal or fraction; None for anything else."""
  try:
    if m := MIXED.fullmatch(text):
      return (int(m[2]) + Fraction(int(m[3]), int(m[4]))) * (-1 if m[1] == '-' else 1)
    text = text.replace(' ', '')
    if _NUMBER.fullmatch(text):
      return Fraction(text)
    if m := _RATIO.fullmatch(text):
      return Fraction(m[1]) / Fraction(m[2])
    if m := _FRAC.fullmatch(text):
      return Fraction(int(m[2] or m[4]), int(m[3] or m[5])) * (-1 if m[1] == '-' else 1)
    if m := _REPEAT.fullmatch(text):
      value = int(m[2] + m[3]) + Fraction(int(m[4]), 10 ** len(m[4]) - 1)
      return value / 10 ** len(m[3]) * (-1 if m[1] == '-' else 1)
  except ZeroDivisionError:
    return None
  return None


@functools.cache
def mp() -> Any:
  """Arithmetic of 60 digits, of a context of its own."""
  from mpmath.ctx_mp import MPContext

  context = MPContext()
  context.dps = 60
  return context


def big(x: Any) -> Any:
  """A fraction with 60 digits; anything else as it is."""
  return mp().mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def _apply(operation: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
  """Exact where both are fractions; no number where that gets too long."""
  if not isinstance(x, Fraction) or not isinstance(y, Fraction):
    x, y = big(x), big(y)
  value = operation(x, y)
  long = isinstance(value, Fraction) and value.numerator.bit_length() > _MAX_BITS
  return mp().nan if long else value


plus = functools.partial(_apply, lambda x, y: x + y)
times = functools.partial(_apply, lambda x, y: x * y)
over = functools.partial(_apply, lambda x, y: x / y)


def power(x: Any, y: Any) -> Any:
  """x^y, exact for a fraction and an integer."""
  if isinstance(x, Fraction) and isinstance(y, Fraction) and y.denominator == 1:
    bits = max(x.numerator.bit_length(), x.denominator.bit_length())
    return mp().nan if bits * abs(y) > _MAX_BITS else x ** int(y)
  x, y = big(x), big(y)
  small = x == 0 or abs(y) * (abs(mp().mag(x)) + 1) < _MAX_BITS
  return x**y if small else mp().nan


def factorial(x: Any) -> Any:
  """x!, of natural numbers to 1000."""
  if not isinstance(x, Fraction) or x.denominator != 1 or x < 0:
    raise UnreadableError('factorial')
  return Fraction(math.factorial(int(x))) if x <= 1000 else mp().nan


def binomial(n: Any, k: Any) -> Any:
  """n over k, of natural numbers, n to 1000."""
  if not all(isinstance(x, Fraction) and x.denominator == 1 and x >= 0 for x in (n, k)):
    raise UnreadableError('binomial')
  return Fraction(math.comb(int(n), int(k))) if n <= 1000 else mp().nan


def root(x: Any, index: Any) -> Any:
  """The real root where there is one: the third root of −8 is −2."""
  odd = isinstance(index, Fraction) and index.denominator == 1 and index.numerator % 2
  if odd and isinstance(x, Fraction) and x < 0:
    return -root(-x, index)
  return power(big(x), 1 / index)


def close(x: Any, y: Any) -> bool:
  """Equal, if both are exact; else to 50 digits."""
  if isinstance(x, Fraction) and isinstance(y, Fraction):
    return x == y
  x, y = big(x), big(y)
  return bool(x == y or (mp().isfinite(x - y) and abs(x - y) <= 1e-50 * max(1, abs(x), abs(y))))
