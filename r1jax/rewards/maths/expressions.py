"""The value of one expression as people and models write it: LaTeX or plain, units or none.

Numbers are those of arithmetic.py. A letter stands for a fixed number at each of two points,
positive at one and negative at the other, so that equal expressions have equal pairs of values. No
text is evaluated as Python.

Cost: linear in the text's length.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1jax.rewards.maths.arithmetic import (
  big,
  binomial,
  close,
  factorial,
  mp,
  number,
  over,
  plus,
  power,
  root,
  times,
)
from r1jax.rewards.maths.errors import UndefinedError, UnreadableError
from r1jax.rewards.maths.units import unit

# Deeper brackets are no answer, and would meet Python's own limit.
MAX_DEPTH = 32

_END = '(?![a-zA-Z])'


@dataclasses.dataclass(frozen=True)
class Number:
  """Values at the two points; `unit` is (scale, dimensions), `text` its spelling if a literal."""

  values: tuple[Any, Any]
  unit: tuple[Fraction, tuple] | None = None
  text: str = ''


# Behind a number these change its value or make it a statement; any other noun is what it counts.
_NO_NOUN = re.compile(
  r'\b(?:or|and|not|if|is|was|are|more|less|than|at|plus|minus|times|over|squared|cubed|factorial|'
  r'choose|mod|half|thirds?|quarters?|hundred|trillion|else|to|but|maybe|no|wrong|pi|sqrt|log|ln|'
  r'sin|cos|tan|exp|zero|one|two|three|four|five|six|seven|eight|nine|ten|infinity|inf|nan|null|none|for|'
  r'from|with|when|then|thus|either|both|[a-z]{1,2})\b'
)


def scalar(text: str) -> Number:
  """An expression, with or without a unit."""
  text = re.sub(r'^([-+]?) *([$€]) *(.+)', r'\1\3 \2', text)
  for m in re.finditer(r'(?<=[\s\d)}])(?=[A-Za-z%$€¢°])', text):
    body, tail = text[: m.start()].strip(), text[m.start() :]
    plain = not re.search(r'[A-Za-z]', re.sub(r'\\(?:[dt]?frac|sqrt|pi|times|cdot)', '', body))
    apart = body != text[: m.start()]
    if body and plain and (apart or not re.match(r'[A-Za-z]\b', tail)):
      if found := unit(tail):
        count, measure = found
        values = tuple(times(v, count) for v in _plain(body).values)
        return Number(values, measure if measure[1] else None)
      if apart and re.fullmatch(r'[a-z]{3,}(?: [a-z]{3,})?', tail) and not _NO_NOUN.search(tail):
        return _plain(body)
  return _plain(text)


def _plain(text: str) -> Number:
  if (value := number(text)) is not None:
    return Number((value, value), None, text)
  one, free = _evaluate(text, 1)
  return Number((one, _evaluate(text, -1)[0] if free else one))


# Expressions.

_PLAIN = ('sin', 'cos', 'tan', 'cot', 'sec', 'csc', 'sinh', 'cosh', 'tanh', 'exp')
_FUNCTIONS = {name: name for name in _PLAIN} | {
  'arcsin': 'asin',
  'arccos': 'acos',
  'arctan': 'atan',
  'ln': 'log',
  'log': 'log',
}
_TOKEN = re.compile(
  rf' *([0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]{{1,3}})?|\.[0-9]+|\\[A-Za-z]+'
  rf'|(?:{"|".join(_FUNCTIONS)}|sqrt|pi){_END}|[A-Za-z](?:_(?:[A-Za-z0-9]|\{{\w+\}}))?|[-+*/^_!(){{}}[\]|°])'
)
_IMPROPER = re.compile(
  r'(?<![\w.}^])(\d+) ?(\\[dt]?frac(?:\{\d+\} ?\{\d+\}|\d\d)|\d+/\d+)(?![\w{^/])'
)
_CLOSE = {'(': ')', '[': ']', '{': '}', '|': '|', '\\lvert': '\\rvert', '\\lfloor': '\\rfloor'}
_CLOSE |= {'\\lceil': '\\rceil', '\\vert': '\\vert'}


_GREEK = ('alpha', 'beta', 'gamma', 'theta', 'lambda', 'mu', 'phi', 'omega', 'sigma', 'rho')
_LONG_WORD = re.compile(rf'(?<![\\A-Za-z])(?!(?:{"|".join(_FUNCTIONS)}|sqrt){_END})[A-Za-z]{{4}}')


class _Reader:
  """Recursive descent over tokens that computes as it reads, at the point `sign`."""

  def __init__(self, tokens: list[str], sign: int):
    self.tokens, self.at, self.sign, self.depth, self.free = [*tokens, ''], 0, sign, 0, False

  def take(self, *wanted: str) -> str:
    """The next token if it is one of the wanted, else ''."""
    token = self.tokens[self.at]
    found = token in wanted if wanted else bool(token)
    self.at += found
    return token if found else ''

  def sum(self) -> Any:
    """a ± b ± …, of any signs in front."""
    total, more = Fraction(0), True
    while more:
      sign = 1
      while mark := self.take('+', '-'):
        sign = -sign if mark == '-' else sign
      total = plus(total, times(Fraction(sign), self.product()))
      more = self.tokens[self.at] in ('+', '-')
    return total

  def product(self) -> Any:
    """Factors with or without a sign between them; a number may only stand first."""
    value = self.power()
    while True:
      if mark := self.take('*', '\\times', '\\cdot', '/', '\\div'):
        value = (over if mark in ('/', '\\div') else times)(value, self.signed())
      elif self.begins():
        value = times(value, self.power())
      else:
        return value

  def signed(self) -> Any:
    """A power with a sign in front, as in 2^-3 and 2 * -3."""
    return times(Fraction(-1), self.power()) if self.take('-') else self.power()

  def begins(self) -> bool:
    """Whether the next token may start a factor that no sign precedes."""
    token = self.tokens[self.at]
    closing = ('\\rvert', '\\rfloor', '\\rceil', '\\vert')
    command = token[:1] == '\\' and token not in closing
    return command or token[:1].isalpha() or token in ('(', '[')  # 1{5} is set as 15

  def power(self) -> Any:
    """An atom with factorials, degrees and an exponent behind it."""
    value = self.atom()
    while mark := self.take('!', '°'):
      value = factorial(value) if mark == '!' else times(value, mp().pi / 180)
      if mark == '!' and self.tokens[self.at] == '!':
        raise UnreadableError('double factorial')
    if self.take('^'):
      value = power(value, self.deeper(self.signed))
    return value

  def deeper(self, read: Callable[[], Any]) -> Any:
    """What `read` reads, one level down."""
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise UnreadableError('too deep')
    value = read()
    self.depth -= 1
    return value

  def atom(self) -> Any:
    """A number, a name, a bracket, a fraction, a root or a function of something."""
    return self.deeper(self._atom)

  def _atom(self) -> Any:
    token = self.take()
    if token[:1].isdigit() or token[:1] == '.':
      return Fraction(token)
    name = token.lstrip('\\')
    if token in _CLOSE:
      return self.enclosed(token)
    if name in ('frac', 'dfrac', 'tfrac', 'cfrac'):
      return over(self.argument(), self.argument())
    if name in ('binom', 'dbinom', 'tbinom'):
      return binomial(self.argument(), self.argument())
    if name == 'sqrt':
      index = self.enclosed('[') if self.take('[') else Fraction(2)
      return root(self.atom(), index)
    if name in _FUNCTIONS:
      return self.function(name)
    if name in ('pi', 'infty', 'e', 'i'):
      return getattr(mp(), {'infty': 'inf', 'i': 'j'}.get(name, name))
    if not name or (token[0] == '\\' and name not in _GREEK):
      raise UnreadableError(token)
    self.free = True
    # Two numbers that have nothing to do with each other: at x and −x even functions look alike.
    name = re.sub('[{}]', '', token) + '-' * (self.sign < 0)
    return self.sign * (mp().mpf(zlib.crc32(name.encode())) / 2**31 + 1)

  def enclosed(self, opening: str) -> Any:
    """What stands before the bracket's end; its absolute value, floor or ceiling if so marked."""
    value = self.sum()
    if not self.take(_CLOSE[opening]):
      raise UnreadableError(opening)
    if opening in ('|', '\\lvert', '\\vert'):
      return abs(value)
    rounding = {'\\lfloor': math.floor, '\\lceil': math.ceil}.get(opening)
    return Fraction(int(rounding(value))) if rounding else value

  def argument(self) -> Any:
    """A group in braces, or one digit, as in \\frac12."""
    token = self.tokens[self.at]
    if token.isdigit() and len(token) > 1:
      self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
    return self.atom()

  def function(self, name: str) -> Any:
    """sin x, sin^2(x), log_2 8, arctan(x)."""
    base = self.atom() if self.take('_') else None
    exponent = self.signed() if self.take('^') else Fraction(1)
    bracket = self.tokens[self.at] in ('(', '{', '[')
    x = self.atom() if bracket else self.power()
    while not bracket and re.fullmatch(r'\\?pi|[A-Za-z]', self.tokens[self.at]):
      x = times(x, self.power())
    x = big(x)
    if x != x or (x and mp().mag(x) > 64):
      return mp().nan
    inverse = exponent == -1 and name in ('sin', 'cos', 'tan')
    value = getattr(mp(), 'a' + name if inverse else _FUNCTIONS[name])(x)
    value = value if base is None else value / mp().log(big(base))
    return value if inverse else power(value, exponent)


@functools.lru_cache(maxsize=8192)
def _evaluate(text: str, sign: int) -> tuple[Any, bool]:
  """(value, whether it has letters) at a point; raises where there is none."""
  text = _IMPROPER.sub(r'(\1+\2)', text)
  tokens = _TOKEN.findall(text)
  if ''.join(tokens) != text.replace(' ', '') or _LONG_WORD.search(text):
    raise UnreadableError(text)
  reader = _Reader(tokens, sign)
  try:
    value = reader.sum()
  except (ArithmeticError, ValueError, TypeError) as e:
    raise UndefinedError(text) from e
  if reader.take():
    raise UnreadableError(text)
  return value, reader.free


# Equality.


def equal(a: Number, b: Number) -> bool | None:
  """Whether two numbers are equal; None where they are so at one of the two points only."""
  if a.unit and b.unit:
    if a.unit[1] != b.unit[1]:
      return False
    a, b = (Number(tuple(times(v, x.unit[0]) for v in x.values), None, x.text) for x in (a, b))
  agree = [close(x, y) for x, y in zip(a.values, b.values)]
  if agree[0]:
    return True if agree[1] else None
  for x, y in ((a, b), (b, a)):
    if x.unit and not y.unit and x.unit[1] == (('percent', 1),):
      return close(x.values[0] / 100, y.values[0])
    if x.unit and not y.unit and x.unit[1] == (('deg', 1),):
      return close(times(x.values[0], mp().pi / 180), y.values[0])
  return a.values[0] is a.values[1] and (_rounded(a, b) or _rounded(b, a))


def minus(a: Number, b: Number) -> Number:
  """a − b at both points."""
  if not isinstance(a, Number) or not isinstance(b, Number) or a.unit or b.unit:
    raise UnreadableError('an equation between more than numbers')
  return Number(tuple(plus(x, times(Fraction(-1), y)) for x, y in zip(a.values, b.values)))


def proportional(a: Number, b: Number) -> bool | None:
  """Whether a/b is the same at both points, so that a = 0 and b = 0 say the same."""
  if any(x == 0 for x in b.values):
    return None
  return close(*(over(x, y) for x, y in zip(a.values, b.values)))


def _rounded(x: Number, y: Number) -> bool:
  """Whether y is written as a decimal of six digits or more that x rounds or is cut to."""
  m = re.fullmatch(r'[+-]?([0-9]*)\.([0-9]+)', y.text)
  integer = isinstance(x.values[0], Fraction) and x.values[0].denominator == 1
  if not m or integer or len((m[1] + m[2]).lstrip('0')) < 6:
    return False
  return bool(abs(big(x.values[0]) - big(y.values[0])) < mp().mpf(10) ** -len(m[2]))
