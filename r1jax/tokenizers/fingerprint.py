"""Whether two tokenizers mean the same by an id: what a teacher's and a student's must agree on.

Sixteen hex digits of the size, the end and padding tokens, the template's markers and the text of
every id. How a text is cut into ids does not enter: both models read the same ones. Cost: one
decoded token an id, a second or two for 150,000.
"""

import hashlib

from r1jax.tokenizers.tokenizer import BOS, EOS, TAGS, Tokenizer


def fingerprint(tok: Tokenizer) -> str:
  """Short hex, equal for tokenizers whose ids have the same meaning."""
  markers = [tok.encode_special(marker) for marker in (BOS, EOS, *TAGS)]
  said = hashlib.sha256(repr((tok.vocab, tok.pad, tok.eos, tok.stops, markers)).encode())
  for i in range(tok.vocab):
    said.update(repr(tok.decode([i])).encode())
  return said.hexdigest()[:16]
