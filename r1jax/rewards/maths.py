"""Is an answer mathematically equal to the gold? Texts and numbers first, then math-verify (sympy).

    1. both are made canonical: LaTeX spacing, $…$ and \\boxed{…} removed, digits and signs mapped;
    2. numbers: equal as exact fractions; words of three letters or more: equal as texts;
    3. anything else: `math_verify.parse` on \\boxed{…} of each, then `math_verify.verify`.

An answer or gold that cannot be parsed is UNPARSEABLE, also where both are the same text, and never
CORRECT. What math-verify reads wrongly is refused before it sees it: letters of a word are no
product ('banana'), '7 7' is not 14, a gold 'nan' is no gold. Units and percent signs are ignored;
an expression equal to the gold is correct, evaluated or not.

Cost: microseconds for numbers, 1–50 ms in sympy, and hours for a tower of powers: there is no time
limit here (math-verify's own needs signals and the main thread). Run it in `pool.Pool`.
Source: github.com/huggingface/Math-Verify.
"""

import functools
import logging
import re
from fractions import Fraction
from typing import Any

from r1jax.rewards.outcome import Outcome

# Longer texts are no answers, and regular expressions and parsers of others would see them.
MAX_CHARS = 1_000
# Deeper brackets cost the parser seconds and are no answer either.
_MAX_DEPTH = 32
_NO_GOLD = ('nan', 'none', 'null', 'n/a')

_SUPER, _SUB = '⁰¹²³⁴⁵⁶⁷⁸⁹', '₀₁₂₃₄₅₆₇₈₉'
_SIGNS = {ord(c): '-' for c in '−–﹣－'} | {ord(c): ' ' for c in '\u00a0\u2009\u202f\u3000'}
_ASCII = _SIGNS | {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F) if c != 0xFF0D}
_VULGAR = {
  '½': '12', '⅓': '13', '⅔': '23', '¼': '14', '¾': '34', '⅕': '15', '⅖': '25', '⅗': '35',
  '⅘': '45', '⅙': '16', '⅚': '56', '⅛': '18', '⅜': '38', '⅝': '58', '⅞': '78',
}  # fmt: skip

_BOX = re.compile(r'\\(?:boxed|fbox)\s*\{')
_SPACING = re.compile(r'\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\!|\\displaystyle(?![a-zA-Z])')
_BLANK = re.compile(r'(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~')
_TEXT = re.compile(r'\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}')
_GROUPED = re.compile(r'(?<![\d.])\d{1,3}(?:[ ,]\d{3})+(?![\d,])')
_TAG = re.compile(r'</?[A-Za-z|][^<>]*>')
_APART = re.compile(r'\d +\d')
_MIXED = re.compile(r'([+-]?)([0-9]+) ([0-9]+)/([0-9]+)')

_DECIMAL = r'[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)'
_NUMBER = re.compile(rf'{_DECIMAL}(?:[eE][+-]?[0-9]{{1,3}})?')
_RATIO = re.compile(rf'({_DECIMAL})/({_DECIMAL})')
_FRAC = re.compile(r'([+-]?)\\[dt]?frac(?:\{([+-]?[0-9]+)\}\{([+-]?[0-9]+)\}|([0-9])([0-9]))')
_WORD = r'[^\W\d_]'
_WORDS = re.compile(rf"(?=.*{_WORD}{{3}}){_WORD}+(?:[ '’-]{_WORD}+)*")


def verify(gold: str, answer: str) -> Outcome:
  """CORRECT, WRONG, or UNPARSEABLE where either cannot be read. May never return: see above."""
  wanted, given = canonical(gold), canonical(answer)
  if wanted is None or given is None or wanted.casefold() in _NO_GOLD:
    return Outcome.UNPARSEABLE
  a, b = number(wanted), number(given)
  if a is not None and b is not None and (a == b or a.denominator == b.denominator == 1):
    return _outcome(a == b)
  if (words := as_words(wanted)) is not None:
    return _outcome(words == as_words(given)) if _readable(given) else Outcome.UNPARSEABLE
  if not _readable(wanted) or not _readable(given):
    return Outcome.UNPARSEABLE
  if as_words(given) is not None:
    return Outcome.WRONG
  return _outcome(wanted == given or _engine()[1](_parse(wanted), _parse(given)))


def canonical(text: str) -> str | None:
  """One spelling of what `text` may write in many; None where it cannot be an answer."""
  if not isinstance(text, str) or len(text) > MAX_CHARS or _TAG.search(text):
    return None
  text = _BLANK.sub(' ', _SPACING.sub('', _to_ascii(text))).replace('{,}', ',')
  text = text.replace('\\%', '%').replace('\\$', '$').strip()
  if not _balanced(text):
    return None
  while (inner := _unwrap(text)) is not None:
    text = inner
  if _BOX.search(text):
    return None
  text = ' '.join(re.sub(r'(?<!\.)\.$', '', text).split())
  if not re.search(r'[(\[{]', text):  # in brackets a comma parts two numbers
    text = _GROUPED.sub(lambda m: re.sub('[ ,]', '', m.group()), text)
  apart = _APART.search(text) and not _MIXED.fullmatch(text)
  return None if apart else text or None


def number(text: str) -> Fraction | None:
  """The value of a canonical integer, decimal or fraction; None for anything else."""
  try:
    if m := _MIXED.fullmatch(text):
      return (int(m[2]) + Fraction(int(m[3]), int(m[4]))) * (-1 if m[1] == '-' else 1)
    text = text.replace(' ', '')
    if _NUMBER.fullmatch(text):
      return Fraction(text)
    if m := _RATIO.fullmatch(text):
      return Fraction(m[1]) / Fraction(m[2])
    if m := _FRAC.fullmatch(text):
      return Fraction(int(m[2] or m[4]), int(m[3] or m[5])) * (-1 if m[1] == '-' else 1)
  except ZeroDivisionError:
    return None
  return None


def as_words(text: str) -> str | None:
  """Canonical text made of words only, folded; None for anything that may be an expression."""
  plain = ' '.join(_TEXT.sub(r' \1 ', text).split())
  return plain.casefold() if _WORDS.fullmatch(plain) else None


def _outcome(correct: bool) -> Outcome:
  return Outcome.CORRECT if correct else Outcome.WRONG


def _to_ascii(text: str) -> str:
  # Not NFKC: it reads 5² as 52 and 10₂ as 102.
  text = re.sub(rf'[{_SUPER}]+', lambda m: f'^{{{_digits(m.group(), _SUPER)}}}', text)
  text = re.sub(rf'[{_SUB}]+', lambda m: f'_{{{_digits(m.group(), _SUB)}}}', text)
  vulgar = rf'(\d ?)?([{"".join(_VULGAR)}])'
  text = re.sub(vulgar, lambda m: m[0] if m[1] else '\\frac' + _VULGAR[m[2]], text)
  return text.translate(_ASCII)


def _digits(text: str, alphabet: str) -> str:
  return ''.join(str(alphabet.index(c)) for c in text)


def _balanced(text: str) -> bool:
  """Braces close in order and no backslash hangs at the end: nothing leaves its box."""
  depth = deepest = 0
  for c in re.sub(r'\\[\\{}]', '', text):
    depth += (c == '{') - (c == '}')
    deepest = max(deepest, depth)
    if depth < 0:
      return False
  shallow = deepest <= _MAX_DEPTH and text.count('(') + text.count('[') <= _MAX_DEPTH
  return shallow and depth == 0 and not text.replace('\\\\', '').endswith('\\')


def _unwrap(text: str) -> str | None:
  """The content where the whole text is one $…$, \\(…\\), \\[…\\] or \\boxed{…}; None elsewhere."""
  for left, right in (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]')):
    inner = text[len(left) : -len(right)]
    if text.startswith(left) and text.endswith(right) and inner.strip() and left not in inner:
      return inner.strip()
  box = _BOX.match(text)
  if box and text.endswith('}') and _balanced(text[box.end() : -1]):
    return text[box.end() : -1].strip()
  return None


def _readable(text: str) -> bool:
  return number(text) is not None or as_words(text) is not None or bool(_parse(text))


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> list[Any]:
  """math-verify's reading of a canonical text; empty where it has none."""
  return _engine()[0](f'\\boxed{{{text}}}')


@functools.cache
def _engine() -> tuple[Any, Any]:
  """(parse, verify) of math-verify, loaded at first use: sympy takes a second."""
  import math_verify

  # It warns at every start that its time limits are off, which is on purpose.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
  parse = functools.partial(
    math_verify.parse,
    extraction_config=config,
    fallback_mode='no_fallback',
    extraction_mode='first_match',
    parsing_timeout=None,
  )
  return parse, functools.partial(math_verify.verify, timeout_seconds=None)
