"""What every tokenizer gives, and the names of the template's markers.

Two ways in, kept apart for safety: `encode` is for text from users, files and models and never
yields a template token, whatever the text says; `encode_special` is for the template alone. Where a
model brings no template of its own, a prompt is `<|bos|><|user|>question<|assistant|>`, each marker
as the tokenizer writes it.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from r1jax.core.errors import UserError
from r1jax.core.text import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'
USER, ASSISTANT = '<|user|>', '<|assistant|>'
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
MARKERS = (PAD, BOS, EOS, USER, ASSISTANT, *TAGS)


class Tokenizer(Protocol):
  """Ids lie in [0, vocab). `eos` may equal `pad`: masks come from lengths, not from tokens."""

  vocab: int
  pad: int
  bos: int | None
  eos: int
  stops: tuple[int, ...]  # any of these ends a completion; eos is among them
  special: frozenset[int]  # control tokens, stops and padding among them: no words of an answer
  opened: str  # what prompts hold of the completion already, such as '<think>\n'; mostly ''

  def encode(self, text: str) -> list[int]:
    """Token ids of plain text; text that looks like a marker stays text."""
    ...

  def encode_special(self, marker: str) -> list[int]:
    """Token ids of one of MARKERS, as this tokenizer writes it: none, one or several.

    USER and ASSISTANT are known where prompts are made of markers; a public template has its own.
    """
    ...

  def prompt(self, question: str, system: str | None = None) -> list[int]:
    """Ids of a question, up to and with what opens the assistant's answer."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids, markers included; the trailing run of stop and padding tokens is no text."""
    ...


def marked_prompt(tok: Tokenizer, question: str, system: str | None) -> list[int]:
  """A prompt made of markers; they have none for `system`, it precedes the question by a line."""
  special, text = tok.encode_special, question if system is None else f'{system}\n\n{question}'
  return [*special(BOS), *special(USER), *tok.encode(text), *special(ASSISTANT)]


def trim(ids: Iterable[int], ends: Sequence[int]) -> list[int]:
  """`ids` without its trailing run of tokens in `ends`."""
  kept = [int(i) for i in ids]
  while kept and kept[-1] in ends:
    kept.pop()
  return kept


def known(ids: Iterable[int], ends: Sequence[int], vocab: int) -> list[int]:
  """`trim` of ids that must lie in [0, vocab)."""
  kept = trim(ids, ends)
  for i in kept:
    if not 0 <= i < vocab:
      raise UserError(f'token {i} is not in [0, {vocab}); were the ids made by this tokenizer?')
  return kept
