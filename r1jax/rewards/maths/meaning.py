"""What a canonical text means, and whether two meanings are equal.

A number with a unit, a tuple or interval, a set, a matrix, a named value, an equation, an
inequality of one letter, words; numbers stand for themselves or, with letters, for their values at
two points (expressions.py).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from r1jax.rewards.maths.arithmetic import number
from r1jax.rewards.maths.errors import UndefinedError, UnreadableError
from r1jax.rewards.maths.expressions import MAX_DEPTH, Number, equal, minus, proportional, scalar
from r1jax.rewards.maths.spelling import depths

_END = '(?![a-zA-Z])'
_WORD = r'[^\W\d_]'
_WORDS = re.compile(rf"(?=.*{_WORD}{{3}}|.*[^\x00-\x7f]){_WORD}+(?:[ '’-]{_WORD}+)*")
NAME = (
  r'(?:(?:\\(?:angle|triangle|vec|bar|overline|Delta)\b ?)*\{?'
  r'(?:[A-Za-z]|[A-Z]{2,4}|[A-Za-z][a-z]{2,}(?: [A-Za-z]+)*|'
  r'\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega|sigma|rho) ?)\}?'
  r"'*(?:_(?:\w|\{\w+\}))?(?: ?\([A-Za-z](?:, ?[A-Za-z])*\))?|\([a-z](?:, ?[a-z])+\))"
)
_MATRIX = re.compile(r'\\begin\{([bp]?matrix|array)\}(?:\{[clr|]+\})?(.*)\\end\{\1\}')
_BUILDER = re.compile(rf'⦃ *{NAME} *(?:\\mid|\\in{_END}|\||:)(.*)⦄|{NAME} *\\in{_END}(.*)')
_BASED = re.compile(r'([0-9][0-9A-Fa-f]*)_(?:([0-9]{1,2})|\{([0-9]{1,2})\})')
_FLIP = str.maketrans('>≥', '<≤')


@dataclasses.dataclass(frozen=True)
class _Many:
  """`kind`: the two brackets of a tuple or interval, ':', 'rows', 'words', 'set' (unordered)."""

  kind: str
  items: tuple


@dataclasses.dataclass(frozen=True)
class _Named:
  name: str
  value: Any


@functools.lru_cache(maxsize=8192)
def read(text: str) -> Any:
  """What a canonical text means, for `same`; raises where the small reader cannot tell."""
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
  cuts = [i for i, (c, depth) in enumerate(zip(text, depths(text))) if c in marks and depth == 0]
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
  pair, inside = text[0] + text[-1], depths(text)[1:-1]
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
  if re.fullmatch(NAME, parts[-1]) and len(parts) == 2 and not re.fullmatch(NAME, parts[0]):
    parts = parts[::-1]
  value, name = deeper(parts[-1]), None
  for part in parts[:-1]:
    if re.fullmatch(NAME, part):
      name = name or part.replace(' ', '')
    else:
      step = deeper(part)
      free = isinstance(step, Number) and step.values[0] is not step.values[1]
      if len(parts) == 2 and free:
        return _Many('=0', (minus(step, value),))
      if free and not same(step, value) and not name:
        raise UnreadableError(part)
      if not free and not same(step, value):
        raise UndefinedError(part)
  return _Named(name, value) if name else value


def _inequality(parts: list[str], marks: str, deeper: Callable[[str], Any]) -> _Many:
  """The interval of one letter: x < 3, 1 < x ≤ 2, 5 ≥ x."""
  if set(marks) <= set('>≥'):
    parts, marks = parts[::-1], marks.translate(_FLIP)[::-1]
  if not set(marks) <= set('<≤'):
    raise UnreadableError(marks)
  if len(parts) == 2:
    first = re.fullmatch(NAME, parts[0])
    parts = ['-\\infty', *parts] if first else [*parts, '\\infty']
    marks = '<' + marks if first else marks + '<'
  ends = [deeper(part) for part in parts[::2]]
  fixed = all(isinstance(x, Number) and x.values[0] is x.values[1] for x in ends)
  if len(parts) != 3 or not fixed or not re.fullmatch(NAME, parts[1]):
    raise UnreadableError(marks)
  return _Many(('(' if marks[0] == '<' else '[') + (')' if marks[1] == '<' else ']'), tuple(ends))


# Comparing.


def same(a: Any, b: Any) -> bool | None:
  """Whether two meanings are equal; None where only the symbolic engine can tell."""
  if isinstance(a, _Named) or isinstance(b, _Named):
    if isinstance(a, _Named) and isinstance(b, _Named):
      return a.name == b.name and same(a.value, b.value)
    a, b = (_free_equation(x) if '=0' in (_kind(a), _kind(b)) else x for x in (a, b))
    return same(getattr(a, 'value', a), getattr(b, 'value', b))
  if isinstance(a, Number) and isinstance(b, Number):
    return equal(a, b)
  kinds = [_kind(a), _kind(b)]
  if kinds == ['set', 'set']:
    return _same_set(a.items, b.items)
  if 'set' in kinds:  # {5} is 5, but 5,5 is not: many write 5.5 so
    several, one = (a, b) if kinds[0] == 'set' else (b, a)
    return same(several.items[0], one) if len(several.items) == 1 else False
  if kinds[0] != kinds[1] or len(a.items) != len(b.items):
    return False
  if kinds[0] == 'words':
    return a.items == b.items
  if kinds[0] == '=0':
    return proportional(a.items[0], b.items[0])
  return _all(same(x, y) for x, y in zip(a.items, b.items))


def _kind(x: Any) -> str:
  return getattr(x, 'kind', 'number')


def _free_equation(x: Any) -> Any:
  """y = 2x + 3 as y − (2x + 3) = 0; anything else, x = 5 too, as it is."""
  number = isinstance(x, _Named) and isinstance(x.value, Number)
  letters = number and x.value.values[0] is not x.value.values[1]
  return _Many('=0', (minus(scalar(x.name), x.value),)) if letters else x


def _same_set(left: tuple, right: tuple) -> bool | None:
  """Every item of each among those of the other."""
  table = [[same(x, y) for y in right] for x in left]
  return _all(_any(row) for row in [*table, *zip(*table)]) if table else not right


def _all(truths: Iterable[bool | None]) -> bool | None:
  found = set(truths)
  return False if False in found else None if None in found else True


def _any(truths: Iterable[bool | None]) -> bool | None:
  found = set(truths)
  return True if True in found else None if None in found else False
