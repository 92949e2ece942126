"""Multiple choice: which option does an answer name, by its letter or by its full text?

    '(B)', 'b', 'B.', 'Answer: B', 'B) Paris', 'The correct option is **B**', 'Paris' → B
    'A or B', 'AB', 'B. London' where London is option C                           → two: WRONG
    '', 'not B', 'none of them', 'A capital city', 'Lyon', longer than MAX_CHARS    → UNPARSEABLE

A letter counts where it stands alone; 'A' and 'I' before a word in small letters are English. A
gold that names no option makes everything UNPARSEABLE. Cost: some 20 µs, linear in the answer.
"""

import re
import unicodedata
from collections.abc import Sequence

from r1jax.rewards.outcome import Outcome

# Longer texts are explanations, not answers.
MAX_CHARS = 2_000
LETTERS = 'ABCDEFGHIJ'

_DRESS = re.compile(
  r'\\(?:boxed|fbox|text[a-z]*|math(?:rm|bf)|left|right)(?![a-z])|[*`$_{}~]|\\[()[\]]'
)
_TAG = re.compile(r'</?[A-Za-z|][^<>]*>')
_LEAD = re.compile(
  r'(?:(?:so|thus|hence|therefore|then),? )?'
  r'(?:i (?:choose|pick|select|would say|think)(?: that)? )?'
  r'(?:it(?: i|\')s )?(?:(?:the|my|our) )?(?:(?:final|correct|best|right|only) )*'
  r'(?:(?:answer|option|choice|letter|solution)\b(?: choice| option)?[ :=-]*'
  r'(?:(?:is|are|would be)\b[ :=-]*)?)*',
  re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![\w'’.\-+^=])([A-J])(?![\w'’\-+^=])(?!\.\w)")
# What makes of a single A or I before it an article or a pronoun.
_ENGLISH = re.compile(r' (?!(?:or|and|nor|is)\b)[a-z]')
_FIRST = re.compile(r'[(\[]?([A-Ja-j])(?:[)\].:,]|\s[-–—]|(?=\s*$))+\s*(.*)', re.DOTALL)
_DENIED = re.compile(
  r"\b(?:not|no|none|neither|nor|cannot|wrong|incorrect|false|except)\b|n['’]t\b", re.IGNORECASE
)


def verify(gold: str, answer: str, options: Sequence[str] = ()) -> Outcome:
  """Outcome of an answer; `options` are the texts of A, B, …, without which only letters count."""
  wanted, given = named(gold, options), named(answer, options)
  limit = LETTERS[: len(options)] if options else LETTERS
  if len(wanted) != 1 or not wanted <= set(limit) or not given:
    return Outcome.UNPARSEABLE
  return Outcome.CORRECT if given == wanted else Outcome.WRONG


def named(answer: str, options: Sequence[str] = ()) -> set[str]:
  """Letters of all options that a text names; none where it cannot be read."""
  if not isinstance(answer, str) or len(answer) > MAX_CHARS or _TAG.search(answer):
    return set()
  text = _plain(answer)
  by_text = {_fold(option): letter for option, letter in zip(options, LETTERS)}
  if len(text) > 1 and (letter := by_text.get(_fold(text))):
    return {letter}
  text = text[_LEAD.match(text).end() :].strip()
  if len(text) > 1 and (letter := by_text.get(_fold(text))):
    return {letter}
  if re.fullmatch(r'[A-J]{2,4}', text) or re.fullmatch(r'[A-J](?:[/&+|][A-J])+', text):
    return set(text) & set(LETTERS)
  first = _FIRST.fullmatch(text)
  rest = first[2] if first else text
  if (letter := by_text.get(_fold(rest.strip('()[] ')))) and first:
    return {first[1].upper(), letter}
  found = {first[1].upper()} if first else set()
  found |= _letters(rest)
  if len(found) < 2 and _DENIED.search(text):
    return set()
  return found


def _letters(text: str) -> set[str]:
  """Capital letters that stand alone, but not the article and the pronoun."""
  found = _ALONE.finditer(text)
  return {m[1] for m in found if m[1] not in 'AI' or not _ENGLISH.match(text, m.end())}


def _plain(text: str) -> str:
  """Compatibility forms, LaTeX and Markdown dress and spare white space removed."""
  text = ''.join(c for c in text if not '\ud800' <= c <= '\udfff')
  text = unicodedata.normalize('NFKC', text.translate(_CIRCLED))
  return ' '.join(_DRESS.sub(' ', text).split())


# Ⓑ is the letter by compatibility, 🅑 and 🄱 are not.
_CIRCLED = {start + i: c for start in (0x1F130, 0x1F150, 0x1F170) for i, c in enumerate(LETTERS)}


def _fold(text: str) -> str:
  """An option's text as it is compared."""
  return re.sub(r'[\s.]+$', '', ' '.join(_plain(text).casefold().split()))
