"""Is an answer mathematically equal to the gold? Texts and numbers first, then math-verify (sympy).

    1. both are made canonical: LaTeX dress, prose in front, $…$ and \\boxed{…} removed, digits,
       signs and thousands mapped; equal keys (exact fractions, else the text) end it;
    2. both are read by a small recursive reader: a number with a unit, a tuple or interval, a set,
       a matrix, a named value, an equation, an inequality of one letter, words. Numbers are exact
       fractions where they can be, else 60 digits; letters stand for two fixed points;
    3. what it cannot read or settle: `math_verify.parse` and `.verify`, on short texts only.

An answer or gold that cannot be read is UNPARSEABLE, also where both are the same text, and never
CORRECT. Several boxes are several answers, as is '5 or 6'. A unit counts only where both have one;
50% is 50 and 1/2; a decimal of six digits or more may stand for what it rounds. Nothing is
evaluated as Python; numbers beyond 2^15 bits are not evaluated and equal their own text alone.

Cost: 10–300 µs in steps 1 and 2, 10–100 ms in sympy, bounded by what `_askable` lets through. There
is no time limit here (math-verify's own needs signals): run it in `pool.Pool`.
Source: github.com/huggingface/Math-Verify.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

from r1jax.rewards.expressions import (
  MAX_DEPTH,
  MIXED,
  Number,
  UndefinedError,
  UnreadableError,
  equal,
  minus,
  number,
  proportional,
  scalar,
)
from r1jax.rewards.outcome import Outcome

# Longer texts are no answers, and regular expressions and parsers of others would see them.
MAX_CHARS = 1_000
_NO_GOLD = ('nan', 'none', 'null', 'n/a')

_SUPER, _SUB = '⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻', '₀₁₂₃₄₅₆₇₈₉₊₋'
_VULGAR = {
  '½': '12', '⅓': '13', '⅔': '23', '¼': '14', '¾': '34', '⅕': '15', '⅖': '25', '⅗': '35',
  '⅘': '45', '⅙': '16', '⅚': '56', '⅛': '18', '⅜': '38', '⅝': '58', '⅞': '78',
}  # fmt: skip
_COMMANDS = {
  'times': '×', 'cdot': '·⋅∙', 'div': '÷', 'pi': 'π', 'infty': '∞', 'pm': '±', 'cup': '∪',
  'in': '∈', 'sqrt': '√', 'theta': 'θ', 'alpha': 'α', 'beta': 'β',
}  # fmt: skip
_ASCII = (
  {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}
  | {ord(c): '-' for c in '−–﹣－'}
  | {ord(c): ' ' for c in '\u00a0\u2009\u202f\u3000\t'}
  | {ord(c): f'\\{name} ' for name, signs in _COMMANDS.items() for c in signs}
  | {ord('⁄'): '/', ord('≈'): '=', ord('⩽'): '≤', ord('⩾'): '≥', ord('∅'): '\\emptyset '}
)
_END = '(?![a-zA-Z])'
_DRESS = tuple(
  (re.compile(pattern), new)
  for pattern, new in (
    (rf'\\(?:left|right|[bB]igg?[lr]?|displaystyle){_END}|\\!', ''),
    (rf'(?<!\\)\\[,;: ]|\\q?quad{_END}|~', ' '),
    (r'\\(?:text[a-z]*|math(?:rm|bf|sf|it)|mbox|operatorname)\s*\{([^{}]*)\}', r' \1 '),
    (r'\\([%$€£])', r'\1'),
    (rf'\\leq?(?:slant)?{_END}|<=', '≤'),
    (rf'\\geq?(?:slant)?{_END}|>=', '≥'),
    (rf'\\neq?{_END}|!=', '≠'),
    (rf'\\lt{_END}', '<'),
    (rf'\\gt{_END}', '>'),
    (rf'\\approx{_END}', '='),
    (rf'\^ *(?:\\circ{_END}|\{{ *\\circ *\}})|\\degree{_END}|\\% *$', '°'),
    (rf'\\(?:emptyset|varnothing){_END}', '⦃⦄'),
    (rf'\\(?:mathbb\{{R\}}|R{_END})', r'(-\\infty,\\infty)'),
    (r'(?<=[\da-z)]) *\*\* *(?=[\d(a-z-])', '^'),
    (r'(?<=\d) *[xX] *(?=10 *\^)', r'\\times '),
    (r'(?<=\d)\{,\}(?=\d{3})', ''),
  )
)
_LEAD = re.compile(
  r'(?:(?:so|thus|hence|therefore|then),?\s+)?'
  r'(?:(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?(?:answer|result|solution|value)\b'
  r'\s*(?:(?:is|are|equals|=|:)\s*)+)?(?:=\s*)?(?:either\s+)?',
  re.IGNORECASE,
)
_BOX = re.compile(r'\\(?:boxed|fbox)\s*\{')
_SIGNS = r'\\(?:[dt]?frac|pi|sqrt|times|cdot|div|pm|sin|cos|tan|log|ln)(?![a-z])'
_BESIDE = re.compile(
  rf'(?:[-+*/^_!\d({{.]|{_SIGNS}|(?<![A-Za-z])[A-Za-z])\s*\$*□|□\$*(?:\w|\s*(?:[-+*/^_!\d)}}]|{_SIGNS}))'
)
_GROUPED = re.compile(r'(?<![\d.,])[1-9]\d{0,2}(?:([ ,])\d{3})(?:\1\d{3})*(?!\d|,\d)')
_TAG = re.compile(r'</?[A-Za-z|][^<>]*>')
_APART = re.compile(r'(?<!_)\d +\.?\d')
_WORD = r'[^\W\d_]'
_WORDS = re.compile(rf"(?=.*{_WORD}{{3}}|.*[^\x00-\x7f]){_WORD}+(?:[ '’-]{_WORD}+)*")


@dataclasses.dataclass(frozen=True)
class _Many:
  """`kind`: the two brackets of a tuple or interval, ':', 'rows', 'words', 'set' (unordered)."""

  kind: str
  items: tuple


@dataclasses.dataclass(frozen=True)
class _Named:
  name: str
  value: Any


def verify(gold: str, answer: str) -> Outcome:
  """CORRECT, WRONG, or UNPARSEABLE where either cannot be read."""
  wanted, given = canonical(gold), canonical(answer)
  if wanted is None or given is None or wanted.casefold() in _NO_GOLD:
    return Outcome.UNPARSEABLE
  a, b = number(wanted), number(given)
  if a is not None and b is not None and (a == b or a.denominator == b.denominator == 1):
    return _outcome(a == b)
  try:
    left, right = read(wanted), read(given)
    same = _key(wanted) == _key(given) or _same(left, right)
    if same is not None:
      return _outcome(same)
  except UndefinedError:
    return Outcome.UNPARSEABLE
  except UnreadableError:  # by the small reader
    same = None
  return _symbolic(wanted, given)


def answer_key(text: str) -> str | None:
  """One hashable spelling for equal numbers and equal texts, for votes; None for no answer."""
  plain = canonical(text)
  return None if plain is None else _key(plain)


@functools.lru_cache(maxsize=8192)
def canonical(text: str) -> str | None:
  """One spelling of what `text` may write in many; None where it cannot be an answer."""
  if not isinstance(text, str) or len(text) > MAX_CHARS or _TAG.search(text):
    return None
  text = _to_ascii(text)
  text = _boxes(text) if _balanced(text) else None
  before = None
  while text is not None and text != before:
    before, text = text, re.sub(r'^\*\*(.+?)\*\*', r'\1', text.strip())
    text = re.sub(r'(?<!\.)[.。]$', '', _LEAD.sub('', text, count=1)).strip()
    text = _unwrap(text)
  if text is None:
    return None
  for pattern, new in _DRESS:
    text = pattern.sub(new, text)
  text = re.sub(r'(?<!\.) ?\.$', '', ' '.join(text.split()))
  if not re.search(r'[(\[⦃]|^\{', text):  # in brackets a comma parts two numbers
    text = _GROUPED.sub(lambda m: re.sub('[ ,]', '', m.group()), text)
  apart = _APART.search(text) and not MIXED.search(text)
  return None if apart else text or None


# Making canonical.


def _outcome(correct: bool) -> Outcome:
  return Outcome.CORRECT if correct else Outcome.WRONG


def _key(plain: str) -> str:
  value = number(plain)
  return plain.replace(' ', '') if value is None else str(value)


def _to_ascii(text: str) -> str:
  # Not NFKC: it reads 5² as 52 and 10₂ as 102.
  text = re.sub(rf'[{_SUPER}]+', lambda m: f'^{{{_digits(m.group(), _SUPER)}}}', text)
  text = re.sub(rf'[{_SUB}]+', lambda m: f'_{{{_digits(m.group(), _SUB)}}}', text)
  text = re.sub(f'[{"".join(_VULGAR)}]', lambda m: '\\frac' + _VULGAR[m[0]], text)
  text = re.sub(r'(?<!\\)\\(?:\{|lbrace(?![a-z]))', '⦃', text.replace('°', '^\\circ '))
  text = re.sub(r'(?<!\\)\\(?:\}|rbrace(?![a-z]))', '⦄', text)
  return text.translate(_ASCII)


def _digits(text: str, alphabet: str) -> str:
  return ''.join('0123456789+-'[alphabet.index(c)] for c in text)


def _balanced(text: str) -> bool:
  """Braces close in order and no backslash hangs at the end: nothing leaves its box."""
  depths = _depths(text, '{', '}')
  shallow = max(depths) <= MAX_DEPTH and text.count('(') + text.count('[') <= MAX_DEPTH
  closed = min(depths) >= 0 and depths[-1] == 0
  return shallow and closed and not text.replace('\\\\', '').endswith('\\')


def _depths(text: str, opening: str = '([{⦃', closing: str = ')]}⦄') -> list[int]:
  """How deep in brackets the text is after each character, from 0."""
  found = [0]
  for c in text:
    found.append(found[-1] + (c in opening) - (c in closing))
  return found


def _boxes(text: str) -> str | None:
  """What the boxes hold, different ones as a list; None if a sign beside one would change it."""
  held, rest, at = [], '', 0
  while box := _BOX.search(text, at):
    end = box.end() + _depths(text[box.end() - 1 :], '{', '}')[2:].index(0) + 1
    held.append((_boxes(text[box.end() : end - 1]) or '').strip())
    rest, at = rest + text[at : box.start()] + '□', end
  if not held:
    return text
  beside = _BESIDE.search(rest + text[at:])
  distinct = {answer_key(text): text for text in reversed(held)}
  return None if beside or not all(held) else ' ; '.join(reversed(distinct.values()))


def _unwrap(text: str) -> str:
  """The content where the whole text is one $…$, \\(…\\), \\[…\\] or `…`; else the text."""
  for left, right in (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]'), ('`', '`')):
    inner = text[len(left) : -len(right)]
    if text.startswith(left) and text.endswith(right) and inner.strip() and left not in inner:
      return inner.strip()
  return text


# The reader: structure.

_NAME = (
  r'(?:(?:\\(?:angle|triangle|vec|bar|overline|Delta)\b ?)*\{?'
  r'(?:[A-Za-z]|[A-Z]{2,4}|[A-Za-z][a-z]{2,}(?: [A-Za-z]+)*|'
  r'\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|sigma|rho) ?)\}?'
  r"'*(?:_(?:\w|\{\w+\}))?(?: ?\([A-Za-z](?:, ?[A-Za-z])*\))?|\([a-z](?:, ?[a-z])+\))"
)
_MATRIX = re.compile(r'\\begin\{([bp]?matrix|array)\}(?:\{[clr|]+\})?(.*)\\end\{\1\}')
_BUILDER = re.compile(rf'⦃ *{_NAME} *(?:\\mid|\\in{_END}|\||:)(.*)⦄|{_NAME} *\\in{_END}(.*)')
_BASED = re.compile(r'([0-9][0-9A-Fa-f]*)_(?:([0-9]{1,2})|\{([0-9]{1,2})\})')
_FLIP = str.maketrans('>≥', '<≤')


@functools.lru_cache(maxsize=8192)
def read(text: str) -> Any:
  """What a canonical text means, for `_same`; raises where the small reader cannot tell."""
  if m := re.fullmatch(r'\(?([A-Za-z])[.)]?', text):  # an option of a multiple choice
    return _Many('words', (m[1].casefold(),))
  return _read(text, 0)


def _read(text: str, depth: int) -> Any:
  text = text.strip()
  if not text or depth > MAX_DEPTH:
    raise UnreadableError(text)
  deeper = functools.partial(_read, depth=depth + 1)
  if (value := number(text)) is not None:
    return Number((value, value), None, text)
  if _WORDS.fullmatch(text):
    return _Many('words', (text.casefold(),))
  if m := _MATRIX.fullmatch(text):
    rows = [row.split('&') for row in m[2].split('\\\\') if row.strip()]
    return _Many('rows', tuple(_Many('[]', tuple(map(deeper, row))) for row in rows))
  if m := _BASED.fullmatch(text):
    return _Many('words', (m[1].casefold(), m[2] or m[3]))
  if m := _BUILDER.fullmatch(text):
    return deeper(m[1] or m[2])
  if re.fullmatch(r'[][].*[][]', text) and (text[0] == ']' or text[-1] == '['):  # ]a, b[
    text = text[0].replace(']', '(') + text[1:-1] + text[-1].replace('[', ')')
  parts, marks = _split(re.sub(r'[,;]? *\b(?:or|and)\b', ';', text), ',;')
  if marks:
    return _gather([deeper(part) for part in parts])
  parts, marks = _split(text, '=<>≤≥')
  if marks:
    return (_equation if set(marks) == {'='} else _inequality)(parts, marks, deeper)
  if '\\cup' in text:
    return _gather(_merged([deeper(part) for part in text.split('\\cup')]))
  if text.count('\\pm') == 1:
    return _gather([deeper(text.replace('\\pm', sign)) for sign in '+-'])
  if ':' in text:
    return _Many(':', tuple(map(scalar, text.split(':'))))
  return _bracketed(text, deeper) or scalar(text)


def _split(text: str, marks: str) -> tuple[list[str], str]:
  """The parts between the marks that stand outside all brackets, and these marks."""
  cuts = [i for i, (c, depth) in enumerate(zip(text, _depths(text))) if c in marks and depth == 0]
  ends = zip([-1, *cuts], [*cuts, len(text)])
  return [text[a + 1 : b].strip() for a, b in ends], ''.join(text[i] for i in cuts)


def _gather(items: list[Any]) -> _Many:
  """Several answers: x = 1 or x = 2 is {1, 2}; x = 1 and y = 2 keep their names."""
  names = [item.name if isinstance(item, _Named) else None for item in items]
  if names[0] and set(names[1:]) <= {names[0], None}:
    items = [item.value if isinstance(item, _Named) else item for item in items]
  sets = [x.items if isinstance(x, _Many) and x.kind == 'set' else (x,) for x in items]
  return _Many('set', tuple(x for group in sets for x in group))


def _merged(items: list[Any]) -> list[Any]:
  """The intervals of a union in order, those that touch or overlap joined."""
  if not all(isinstance(x, _Many) and x.kind[0] in '([' and len(x.items) == 2 for x in items):
    return items
  ends = [x for item in items for x in item.items]
  if not all(isinstance(x, Number) and x.values[0] is x.values[1] for x in ends):
    return items
  size = lambda x: float(x.values[0])
  spans = sorted(items, key=lambda span: (size(span.items[0]), span.kind[0] == '('))
  joined = spans[:1]
  for span in spans[1:]:
    (start, end), (low, high) = joined[-1].items, span.items
    gap = size(low) > size(end) or (
      size(low) == size(end) and joined[-1].kind[1] + span.kind[0] == ')('
    )
    if gap:
      joined.append(span)
    else:
      longer = (size(high), span.kind[1]) > (size(end), joined[-1].kind[1])
      kind, last = (span.kind, high) if longer else (joined[-1].kind, end)
      joined[-1] = _Many(joined[-1].kind[0] + kind[1], (start, last))
  return joined


def _bracketed(text: str, deeper: Callable[[str], Any]) -> _Many | None:
  """A tuple, interval, list or set, where one pair of brackets holds all of the text."""
  pair, inside = text[0] + text[-1], _depths(text)[1:-1]
  if pair not in ('()', '(]', '[)', '[]', '{}', '⦃⦄') or min(inside, default=0) < 1:
    return None
  parts, marks = _split(text[1:-1], ',;')
  if pair == '⦃⦄':
    return _gather([deeper(part) for part in parts]) if parts != [''] else _Many('set', ())
  if not marks:  # brackets around a matrix are only dress
    return deeper(text[1:-1]) if '\\begin' in text else None
  items = tuple(deeper(part) for part in parts)
  if pair == '{}':
    return _gather(list(items))
  rows = pair == '[]' and all(isinstance(x, _Many) and x.kind == '[]' for x in items)
  return _Many('rows' if rows else pair, items)


def _equation(parts: list[str], _: str, deeper: Callable[[str], Any]) -> Any:
  """The last value of a chain, under the name in front; its constants must all be equal."""
  if re.fullmatch(_NAME, parts[-1]) and len(parts) == 2 and not re.fullmatch(_NAME, parts[0]):
    parts = parts[::-1]
  value, name = deeper(parts[-1]), None
  for part in parts[:-1]:
    if re.fullmatch(_NAME, part):
      name = name or part.replace(' ', '')
    else:
      step = deeper(part)
      free = isinstance(step, Number) and step.values[0] is not step.values[1]
      if len(parts) == 2 and free:
        return _Many('=0', (minus(step, value),))
      if free and not _same(step, value) and not name:
        raise UnreadableError(part)
      if not free and not _same(step, value):
        raise UndefinedError(part)
  return _Named(name, value) if name else value


def _inequality(parts: list[str], marks: str, deeper: Callable[[str], Any]) -> _Many:
  """The interval of one letter: x < 3, 1 < x ≤ 2, 5 ≥ x."""
  if set(marks) <= set('>≥'):
    parts, marks = parts[::-1], marks.translate(_FLIP)[::-1]
  if not set(marks) <= set('<≤'):
    raise UnreadableError(marks)
  if len(parts) == 2:
    first = re.fullmatch(_NAME, parts[0])
    parts = ['-\\infty', *parts] if first else [*parts, '\\infty']
    marks = '<' + marks if first else marks + '<'
  ends = [deeper(part) for part in parts[::2]]
  fixed = all(isinstance(x, Number) and x.values[0] is x.values[1] for x in ends)
  if len(parts) != 3 or not fixed or not re.fullmatch(_NAME, parts[1]):
    raise UnreadableError(marks)
  return _Many(('(' if marks[0] == '<' else '[') + (')' if marks[1] == '<' else ']'), tuple(ends))


# Comparing.


def _same(a: Any, b: Any) -> bool | None:
  """Whether two meanings are equal; None where only the symbolic engine can tell."""
  if isinstance(a, _Named) or isinstance(b, _Named):
    if isinstance(a, _Named) and isinstance(b, _Named):
      return a.name == b.name and _same(a.value, b.value)
    a, b = (_free_equation(x) if '=0' in (_kind(a), _kind(b)) else x for x in (a, b))
    return _same(getattr(a, 'value', a), getattr(b, 'value', b))
  if isinstance(a, Number) and isinstance(b, Number):
    return equal(a, b)
  kinds = [_kind(a), _kind(b)]
  if kinds == ['set', 'set']:
    return _same_set(a.items, b.items)
  if 'set' in kinds:  # {5} is 5, but 5,5 is not: many write 5.5 so
    several, one = (a, b) if kinds[0] == 'set' else (b, a)
    return _same(several.items[0], one) if len(several.items) == 1 else False
  if kinds[0] != kinds[1] or len(a.items) != len(b.items):
    return False
  if kinds[0] == 'words':
    return a.items == b.items
  if kinds[0] == '=0':
    return proportional(a.items[0], b.items[0])
  return _all(_same(x, y) for x, y in zip(a.items, b.items))


def _kind(x: Any) -> str:
  return getattr(x, 'kind', 'number')


def _free_equation(x: Any) -> Any:
  """y = 2x + 3 as y − (2x + 3) = 0; anything else, x = 5 too, as it is."""
  number = isinstance(x, _Named) and isinstance(x.value, Number)
  letters = number and x.value.values[0] is not x.value.values[1]
  return _Many('=0', (minus(scalar(x.name), x.value),)) if letters else x


def _same_set(left: tuple, right: tuple) -> bool | None:
  """Every item of each among those of the other."""
  table = [[_same(x, y) for y in right] for x in left]
  return _all(_any(row) for row in [*table, *zip(*table)]) if table else not right


def _all(truths: Iterable[bool | None]) -> bool | None:
  found = set(truths)
  return False if False in found else None if None in found else True


def _any(truths: Iterable[bool | None]) -> bool | None:
  found = set(truths)
  return True if True in found else None if None in found else False


# The symbolic engine.

_COMMAND = re.compile(r'\\[A-Za-z]+|(?:sin|cos|tan|log|ln|exp|sqrt|max|min|pi)(?![a-z])')
_PROSE = re.compile(
  r'[^\W\d_]{3}|[A-Za-z}] *\d|\d *[{_]|\d +\.?\d|\.\d*\.|[-+*/^_<>≤≥≠(]$|[^\x00-\x7f≤≥≠⦃⦄]'
  r'|[=?#@;:%`\'"$&~]'
)
_ENDLESS = re.compile(r'\\(?:sum|prod|int|lim|binom|input|def)|!|\^[^\^]*\^|\d{7}|\^ *\{?-?\d{4}')


def _symbolic(wanted: str, given: str) -> Outcome:
  """What math-verify says of two texts; UNPARSEABLE where it reads nothing, or might not end."""
  wanted, given = (re.sub(f'^{_NAME} *=(?!=)', '', text) for text in (wanted, given))
  if not _askable(wanted) or not _askable(given):
    return Outcome.UNPARSEABLE
  check = _engine()[1]  # outside: that it is not installed is no answer's fault
  try:
    a, b = _parse(wanted), _parse(given)
    return _outcome(check(a, b)) if a and b else Outcome.UNPARSEABLE
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
