"""What the tokens of a vocabulary are as texts: the ids that sparse attention keeps in sight.

    punctuation   nothing but characters of Unicode's categories P* and white space: '.', ' (', '。'
    paragraph     a line break in it: '\\n', '.\\n\\n'

A token can be both. Symbols (category S: '$', '+', '=') are no punctuation, control tokens are of
no kind. What a vocabulary spells in several tokens, as bytes, is U+FFFD in each of them: no kind
either. Cost: one decoded token an id.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

from r1jax.core.errors import UserError, no_such
from r1jax.tokenizers.tokenizer import Tokenizer

Kind = Literal['punctuation', 'paragraph']
_BREAKS = frozenset('\n\r\u2028\u2029')


def key_tokens(tokenizer: Tokenizer, kinds: tuple[Kind, ...]) -> tuple[int, ...]:
  """Ascending ids of the tokens that are of any of these kinds."""
  for kind in kinds:
    if kind not in _KINDS:
      raise UserError(no_such('kind of token', kind, _KINDS))
  asked = [_KINDS[kind] for kind in kinds]
  ids = (i for i in range(tokenizer.vocab) if i not in tokenizer.special)
  texts = ((i, tokenizer.decode([i])) for i in ids)
  return tuple(i for i, text in texts if any(is_one(text) for is_one in asked))


def is_punctuation(text: str) -> bool:
  """Whether a text is punctuation, white space around it aside."""
  bare = text.strip()
  return bool(bare) and all(unicodedata.category(c)[0] == 'P' for c in bare)


def is_paragraph(text: str) -> bool:
  """Whether a text holds the end of a line."""
  return not _BREAKS.isdisjoint(text)


_KINDS: Mapping[str, Callable[[str], bool]] = {
  'punctuation': is_punctuation,
  'paragraph': is_paragraph,
}
