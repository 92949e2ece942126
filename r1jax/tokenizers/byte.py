"""UTF-8 bytes as tokens: ids 0..255 are the bytes, 256..264 the template's markers.

One token a byte: a vocabulary of 265 suits models of a few million parameters, whose embedding
would otherwise outweigh everything else.
"""

from collections.abc import Iterable

from r1jax.core.errors import UserError
from r1jax.tokenizers.tokenizer import BOS, EOS, MARKERS, PAD, TAGS, known, marked_prompt

_ID = {marker: 256 + i for i, marker in enumerate(MARKERS)}
_BYTES = [bytes([i]) for i in range(256)] + [marker.encode() for marker in MARKERS]


class ByteTokenizer:
  """A `Tokenizer` over bytes."""

  vocab = len(_BYTES)
  pad, bos, eos = _ID[PAD], _ID[BOS], _ID[EOS]
  stops = (eos,)
  special = frozenset(_ID[marker] for marker in MARKERS if marker not in TAGS)
  opened = ''

  def encode(self, text: str) -> list[int]:
    """The bytes of `text`; a lone surrogate, which UTF-8 cannot hold, becomes '?'."""
    return list(text.encode('utf-8', errors='replace'))

  def encode_special(self, marker: str) -> list[int]:
    """The one id of a marker."""
    if marker not in _ID:
      raise UserError(f'unknown marker {marker!r}; the template has {", ".join(_ID)}')
    return [_ID[marker]]

  def prompt(self, question: str, system: str | None = None) -> list[int]:
    """Ids of a question between its markers."""
    return marked_prompt(self, question, system)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids; bytes that are not UTF-8 become U+FFFD, markers their own text."""
    kept = known(ids, (self.eos, self.pad), self.vocab)
    return b''.join(_BYTES[i] for i in kept).decode('utf-8', errors='replace')
