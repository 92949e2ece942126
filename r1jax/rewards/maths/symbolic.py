"""math-verify (sympy) on two canonical texts that the small reader could not settle.

Cost: some milliseconds, more for trigonometry, bounded by what `_askable` lets through: sympy would
expand some texts without end.
There is no time limit here, since math-verify's own needs signals.
Source: github.com/huggingface/Math-Verify.
"""

import functools
import logging
import re
from typing import Any

from r1jax.rewards.maths.meaning import NAME
from r1jax.rewards.outcome import Outcome

_COMMAND = re.compile(r'\\[A-Za-z]+|(?:sin|cos|tan|log|ln|exp|sqrt|max|min|pi)(?![a-z])')
_PROSE = re.compile(
  r'[^\W\d_]{3}|[A-Za-z}] *\d|\d *[{_]|\d +\.?\d|\.\d*\.|[-+*/^_<>≤≥≠(]$|[^\x00-\x7f≤≥≠⦃⦄]'
  r'|[=?#@;:%`\'"$&~]'
)
_ENDLESS = re.compile(r'\\(?:sum|prod|int|lim|binom|input|def)|!|\^[^\^]*\^|\d{7}|\^ *\{?-?\d{4}')


def compare(wanted: str, given: str) -> Outcome:
  """What math-verify says of two texts; UNPARSEABLE where it reads nothing, or might not end."""
  wanted, given = (re.sub(f'^{NAME} *=(?!=)', '', text) for text in (wanted, given))
  if not _askable(wanted) or not _askable(given):
    return Outcome.UNPARSEABLE
  check = _engine()[1]  # outside: that it is not installed is no answer's fault
  try:
    a, b = _parse(wanted), _parse(given)
    if not a or not b:
      return Outcome.UNPARSEABLE
    return Outcome.CORRECT if check(a, b) else Outcome.WRONG
  except Exception:  # whatever the engine trips over, it has not read it
    return Outcome.UNPARSEABLE


def _askable(text: str) -> bool:
  """Short, no prose, and nothing that sympy would expand without end."""
  prose = _PROSE.search(_COMMAND.sub(' ', text))
  paired = sum(map(text.count, '([{⦃')) == sum(map(text.count, ')]}⦄'))
  return len(text) <= 200 and paired and not _ENDLESS.search(text) and not prose


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> list[Any]:
  """math-verify's reading of a canonical text; empty where it has none."""
  for sign, command in zip('≤≥≠⦃⦄', ('\\le ', '\\ge ', '\\ne ', '\\{', '\\}')):
    text = text.replace(sign, command)
  return _engine()[0](f'\\boxed{{{text}}}')


@functools.cache
def _engine() -> tuple[Any, Any]:
  """(parse, verify) of math-verify, loaded at first use: sympy takes a second."""
  import math_verify

  # It warns at every start that its time limits are off, which is on purpose.
  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
  parse = functools.partial(
    math_verify.parse,
    extraction_config=config,
    fallback_mode='no_fallback',
    extraction_mode='first_match',
    parsing_timeout=None,
  )
  return parse, functools.partial(math_verify.verify, timeout_seconds=None)
