"""One spelling of the many that an answer may have.

LaTeX dress, prose in front, $…$ and \\boxed{…} are removed; digits, signs and thousands mapped. A
text that cannot be an answer has none: too long, with a tag, not balanced, two numbers apart.
"""

import functools
import re

from r1jax.rewards.maths.arithmetic import MIXED, number
from r1jax.rewards.maths.expressions import MAX_DEPTH

# Longer texts are no answers, and regular expressions and parsers of others would see them.
MAX_CHARS = 1_000
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


def answer_key(text: str) -> str | None:
  """One hashable spelling for equal numbers and equal texts, for votes; None for no answer."""
  plain = canonical(text)
  return None if plain is None else key(plain)


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


def key(plain: str) -> str:
  """A canonical text, or the number that it is."""
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
  deep = depths(text, '{', '}')
  shallow = max(deep) <= MAX_DEPTH and text.count('(') + text.count('[') <= MAX_DEPTH
  closed = min(deep) >= 0 and deep[-1] == 0
  return shallow and closed and not text.replace('\\\\', '').endswith('\\')


def depths(text: str, opening: str = '([{⦃', closing: str = ')]}⦄') -> list[int]:
  """How deep in brackets the text is after each character, from 0."""
  found = [0]
  for c in text:
    found.append(found[-1] + (c in opening) - (c in closing))
  return found


def _boxes(text: str) -> str | None:
  """What the boxes hold, different ones as a list; None if a sign beside one would change it."""
  held, rest, at = [], '', 0
  while box := _BOX.search(text, at):
    end = box.end() + depths(text[box.end() - 1 :], '{', '}')[2:].index(0) + 1
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
