"""Language consistency of R1 (arXiv 2501.12948): words of the target language / all words of the
thought.

A word is a run of letters of one script; a Han character is a word by itself, as Chinese is not
spaced. The script decides the language: Latin for 'en', Han for 'zh'. Digits, punctuation, LaTeX
commands and single letters of an alphabet (variables) are no words. A thought without words is
consistent: 1.
"""

import re

from r1jax.core.errors import UserError, no_such

_HAN = '\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af'
_LATIN = (
  'A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a'
)
# Runs may hold combining marks, without which the words of many scripts would fall apart.
_WORD = re.compile(
  rf'(?P<zh>[{_HAN}])|(?P<en>[{_LATIN}][{_LATIN}\u0300-\u036f]+)'
  rf'|(?P<other>[^\W\d_{_HAN}{_LATIN}](?:[^\W\d_{_HAN}{_LATIN}]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])+)'
)
_COMMAND = re.compile(r'\\[A-Za-z]+')
LANGUAGES = ('en', 'zh')


def consistency(thought: str, target: str) -> float:
  """Share of `thought`'s words that are in `target`, one of LANGUAGES."""
  if target not in LANGUAGES:
    raise UserError(no_such('language', target, LANGUAGES))
  words = [m.lastgroup for m in _WORD.finditer(_COMMAND.sub(' ', thought))]
  return words.count(target) / len(words) if words else 1.0
