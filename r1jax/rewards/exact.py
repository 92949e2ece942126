"""Equality of texts up to Unicode NFC, case and white space: for answers that are words."""

import unicodedata

from r1jax.rewards.outcome import Outcome


def canonical(text: str) -> str:
  """The form in which answers are compared."""
  return ' '.join(unicodedata.normalize('NFC', text).casefold().split())


def verify(gold: str, answer: str) -> Outcome:
  """CORRECT where the texts are equal; a blank gold or answer is UNPARSEABLE."""
  wanted, given = canonical(gold), canonical(answer)
  if not wanted or not given:
    return Outcome.UNPARSEABLE
  return Outcome.CORRECT if wanted == given else Outcome.WRONG
