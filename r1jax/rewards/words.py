"""Texts as words and n-grams, for the parts that count them. Nothing here reads a language.

A token is a run of letters and digits (longer ones are cut every 16 characters, so that a loop
without spaces repeats tokens too), two characters of an unspaced script, or a run of signs.
Characters without width are dropped first: between letters they would part every word.

Cost: linear, about 0.1 s for 10⁶ characters. `tokens` reads the last MAX_CHARS of a text.
"""

import re
import unicodedata

# Longer than a completion of 65,536 tokens; where a text goes wrong, its end does.
MAX_CHARS = 400_000

HAN = '\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af'
KANA = '\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f'

_HIDDEN = re.compile(
  '[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+'
)
_PARTED = re.compile('[\u0300-\u036f\u1100-\u11ff\u3099\u309a]')
_PIECE = re.compile(r'\S{1,64}')
_TOKEN = re.compile(rf'[{HAN}{KANA}]{{1,2}}|[^\W{HAN}{KANA}]{{1,16}}|[^\w\s]{{1,16}}')  # fmt: skip


def visible(text: str) -> str:
  """The text without characters of no width, accents joined to their letters (NFC)."""
  text = _HIDDEN.sub('', text)
  if not _PARTED.search(text):
    return text
  # By pieces: on a long run of accents the normalization takes quadratic time.
  return _PIECE.sub(lambda m: unicodedata.normalize('NFC', m[0]), text)


def tokens(text: str) -> list[str]:
  """Words and signs in order, in lower case."""
  return _TOKEN.findall(visible(text[-MAX_CHARS:]).lower())


def grams(text: str, n: int) -> list[tuple[str, ...]]:
  """The n-grams of tokens in order; a text of fewer tokens is one gram, a blank one has none."""
  found = tokens(text)
  if len(found) < n:
    return [tuple(found)] if found else []
  return list(zip(*(found[i:] for i in range(n))))
