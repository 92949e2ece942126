"""What an answer says: a verdict on an entailment, values of a puzzle's variables.

Words that carry nothing ('so', 'the answer is') may stand around it; any other word makes it
unreadable, so that no answer is read out of prose. Cost: linear in the text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_TRUE, _FALSE = ('true', 'yes', '1', 't'), ('false', 'no', '0', 'f')
_VERDICTS = {
  **dict.fromkeys(('true', 'yes', 'valid', 'entailed', 'proved', 'follows', 'entailment'), 'True'),
  **dict.fromkeys(('false', 'no', 'disproved', 'refuted', 'contradiction'), 'False'),
  **dict.fromkeys(
    ('unknown', 'uncertain', 'undetermined', 'neither', 'cannot be determined', 'neutral',
     'cannot be inferred', "can't be determined", 'not determined', 'indeterminate'), 'Unknown'),
}  # fmt: skip
_NOT = ('does not follow', 'not valid', 'invalid', 'not entailed', "doesn't follow")
_FILLER = re.compile(
  r'[\s,;.:*&=$(){}\\]|\b(?:so|thus|therefore|hence|final|the|answer|is|are|it|that|solution|and|'
  r'conclusion|statement)\b'
)


_LEAD = re.compile(
  r'^(?:(?:so|thus|therefore|hence)\b)?,?\s*(?:the )?(?:answer|conclusion)\s*(?:is\b|:)\s*',
  re.IGNORECASE,
)


def _plain(answer: str) -> str:
  text = re.sub(r'\\(?:boxed|text|mathrm|textbf)\s*(?=\{)', ' ', answer)
  return ' '.join(re.sub(r'["`$*{}]', ' ', text.replace('’', "'")).split())


def stated(answer: str) -> str:
  """The formula of an answer that is one, without 'the conclusion is' and a full stop."""
  return _LEAD.sub('', _plain(answer)).rstrip('. ')


def verdicts(answer: str, three: bool) -> set[str]:
  """What an answer to an entailment says: none if it cannot be read, two if it does not decide."""
  text, found = _plain(answer).casefold(), set()
  words = _VERDICTS if three else {w: v for w, v in _VERDICTS.items() if v != 'Unknown'}
  words = words | ({} if three else dict.fromkeys(_NOT, 'False'))
  for word in sorted(words, key=len, reverse=True):
    text, count = re.subn(rf'(?<![\w]){re.escape(word)}(?!\w)', ' ', text)
    found |= {words[word]} if count else set()
  left = _FILLER.sub('', text)
  return found if left in ('', 'or') else set()


def assignment(
  answer: str,
  variables: Iterable[str],
  domains: Mapping[str, Sequence[str | int]],
  roles: tuple[str, str],
) -> dict[str, set] | None:
  """Values by variable, two where the answer gives two; None where it cannot be read."""
  text = _plain(answer)
  known = {name.casefold(): name for name in variables}
  name = '|'.join(re.escape(n) for n in sorted(known, key=len, reverse=True))
  if not name:
    return None
  found: dict[str, set] = {}
  clause = re.compile(
    rf'(?<!\w)(?P<names>(?:{name})(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)(?:{name}))*)(?!\w)'
    r'\s*(?:=|:=|:|->|→|↦|\bis\b|\bare\b)\s*(?P<no>not\s+)?(?:(?:an?|the|both|all)\s+)*'
    r'(?P<value>[\w-]+)(?!\w)',
    re.IGNORECASE,
  )
  for m in clause.finditer(text):
    for one in re.findall(rf'(?<!\w)(?:{name})(?!\w)', m['names'], re.IGNORECASE):
      variable = known[one.casefold()]
      value = _value(m['value'], domains.get(variable), roles)
      if value is None or (m['no'] and variable in domains):
        return None
      found.setdefault(variable, set()).add((not value) if m['no'] else value)
  left = _FILLER.sub('', clause.sub(' ', text).casefold())
  if left == 'or' and found:  # an answer that gives a choice decides nothing
    return {variable: values | {None} for variable, values in found.items()}
  return found if not left and found else None


def _value(word: str, domain: Sequence[str | int] | None, roles: tuple[str, str]) -> Any:
  """The word as a value of the domain, or as a truth value; None if it is neither."""
  word = word.casefold()
  if domain is not None:
    return next((v for v in domain if str(v).casefold() == word), None)
  for truth, words in ((True, _TRUE), (False, _FALSE)):
    role = roles[0 if truth else 1].casefold()
    if word in (*words, role, role + 's', role + 'es'):
      return truth
  return None
