"""Equality of texts up to Unicode NFC, case and white space: for answers that are words."""

import unicodedata

from r1jax.rewards.outcome import Outcome


def canonical(text: str) -> str:
  """The form in which answers are compared."""
  return ' '.join(unicodedata.normalize('NFC', text).casefold().split())


def verify(gold: str, answer: str) -> Outcome:
  """CORRECT where the texts are equal; a blank gold or answer is UNPARSEABLE."""
  wanted, given = canonical(gold), ' '.join(answer.split())
  if not wanted or not given:
    return Outcome.UNPARSEABLE
  # Composing takes a square of time on a long row of marks. It makes one character of at most four,
  # and folding case never makes fewer: what is longer than this is not equal.
  if len(given) > 4 * len(wanted):
    return Outcome.WRONG
  return Outcome.CORRECT if wanted == canonical(given) else Outcome.WRONG
