"""Does a thought contradict itself or its answer? A penalty: −1 where it does, else 0.

A result is stated by an explicit phrase and a plain number: 'the answer is 7', 'final answer: 7',
'答案是7', 'la respuesta es 7', `\\boxed{7}`. −1 where

    two results in a row differ and nothing between them takes the first back, or
    the answer is a number and differs from the last result.

The rule is conservative, for a false alarm would teach models not to state results. It looks at
numbers only, as exact fractions, and takes as equal what rounding to the coarser one's decimals
makes equal ('3.14159 ≈ 3.14'). A number that goes on ('5 + 3', '2x', '50%', '3,5') and a phrase in
a sentence with a condition, a negation or a question ('if x = 1 the answer is 5') state nothing,
and part what stands before and behind them. Behind a result, words of doubt or change ('wait',
'but', 'instead', 'part', '等等') make what follows a correction: reflection is not punished.
Cost: linear.
"""

import collections
import re
from fractions import Fraction

from r1jax.core.text import SELF_CHECKS
from r1jax.rewards.words import visible

_NUMBER = r'[-−]?(?:\d{1,3}(?:,\d{3}){1,6}(?!\d)|\d{1,40})(?:\.\d{1,40})?(?:/\d{1,40})?'
_PLAIN = re.compile(_NUMBER)
_EXACT = 1_000  # decimals of a fraction: more than any decimal number here has
_MOST = 100  # results of one thought that are looked at, the last ones
_PHRASE = (
  r'\b(?:(?:final )?answer(?: is(?: therefore| then)?|:| =)|respuesta(?: final)? es|risposta è'
  r'|réponse(?: finale)? est|resposta(?: final)? é|antwort (?:ist|lautet)|ответ(?::| —| равен))'
  r'|(?:最终)?答案(?:是|为|：|:)|答えは|답은'
)
# What follows a phrase and is no plain number is caught too, with an empty group.
_STATED = re.compile(
  rf'(?:(?:{_PHRASE})[ \t*$:：]{{0,8}}(?:\\boxed\{{)?|\\boxed\{{)(?P<number>{_NUMBER}'
  r'(?![a-zà-ÿα-ωа-я\d_%°\\十百千万亿億만억]|[.,]\d| ?[-+−/^=×·÷±<>≈]| ?\*(?!\*)|\*\*\d'
  r'| ?\\(?:times|cdot|frac|pi|sqrt|pm)))?'
)
_SENTENCE = re.compile(r'[.!?;。！？；](?!\d)|\n')
_UNSURE = re.compile(
  r"\b(?:if|unless|when|whether|suppose|assum\w{0,5}|would|could|might|may|not|never|\w{1,6}n[’']t|"
  r'si|wenn|falls|nicht|pas|если|не|rather|guess|hope|says?|said|claims?)\b|[?？]|如果|假设|不|若|もし|ない'
  r'|만약'
)
_CHANGE = re.compile(
  rf'\b(?:{"|".join(SELF_CHECKS)}|but|no|not|however|instead|rather|mistake\w{{0,2}}|wrong|error|'
  r'correct\w{0,5}|alternativ\w{0,4}|second|next|other|another|also|part|case|question|problem|example|'
  r'again|now|oops|sorry|pero|no|espera|mais|attends|aber|warte|doch|но|нет|подожди)\b'
  r'|不|等等|但|错|另|对了|其实|でも|待|違|하지만|아니|잠깐'
)


def penalty(thought: str, answer: str | None) -> float:
  """−1.0 for a contradiction, 0.0 where none is certain."""
  text = visible(thought).lower()
  before, end = None, 0
  for stated in collections.deque(_STATED.finditer(text), _MOST):
    value = _value(stated['number'])
    value = value if value and _asserted(text, stated) else None
    if value and before and differ(before, value) and not _CHANGE.search(text[end : stated.end()]):
      return -1.0
    before, end = value, stated.end()
  given = _value(answer)
  wrong = before and given and differ(before, given) and not _CHANGE.search(text[end:])
  return -1.0 if wrong else 0.0


def differ(a: tuple[Fraction, int], b: tuple[Fraction, int]) -> bool:
  """Whether two (value, decimals) differ by more than rounding to the fewer decimals."""
  decimals = min(a[1], b[1])
  exact = a[1] == b[1]
  return a[0] != b[0] if exact else abs(a[0] - b[0]) > Fraction(1, 2 * 10**decimals)


def _value(text: str | None) -> tuple[Fraction, int] | None:
  """A plain number and its decimals; a fraction has as many as the other number."""
  plain = (text or '').strip().removesuffix('.').strip('$ ')
  if not _PLAIN.fullmatch(plain):
    return None
  plain = plain.replace(',', '').replace('−', '-')
  try:
    number = Fraction(*map(Fraction, plain.split('/')))
  except ZeroDivisionError:
    return None
  return number, _EXACT if '/' in plain else len(plain.partition('.')[2])


def _asserted(text: str, stated: re.Match[str]) -> bool:
  """Whether the sentence around a result has no condition, negation or question."""
  # Sentences are searched in a window: a text of one sentence would cost its square.
  first = max(0, stated.start() - 200)
  before = _SENTENCE.split(text[first : stated.start()])[-1]
  rest = text[stated.end() : stated.end() + 100]
  stop = _SENTENCE.search(rest)
  return not _UNSURE.search(before + stated[0] + (rest[: stop.end()] if stop else rest))
