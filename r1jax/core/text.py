"""The shape of a completion: `<think>thought</think><answer>answer</answer>`. Imports no jax.

The format and its two tags are those of DeepSeek-R1 (arXiv 2501.12948, table 1). `self_checks`
counts the phrases by which a thought turns back on itself (the paper's "aha" and its figure on
reflection words); it is a measurement, never a reward. Cost: a few linear scans of the text; no
pattern here backtracks.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

THINK_OPEN = '<think>'
THINK_CLOSE = '</think>'
ANSWER_OPEN = '<answer>'
ANSWER_CLOSE = '</answer>'
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
ENDS = ('<|eos|>',)

SELF_CHECKS = (
  r'wait',
  r'let(?: me|[\'’]s) check',
  r'verif(?:y|ies|ied|ying)',
  r're-?check(?:s|ed|ing)?',
  r'double[- ]?check(?:s|ed|ing)?',
  r'hm{2,}',
  r'actually',
)
_SELF_CHECK = re.compile(rf'\b(?:{"|".join(SELF_CHECKS)})\b', re.IGNORECASE)


class Spans(NamedTuple):
  """What a completion holds: None for a part that is absent or ambiguous."""

  think: str | None
  answer: str | None
  well_formed: bool


def render(think: str, answer: str) -> str:
  """The well-formed completion of a thought and an answer."""
  return f'{THINK_OPEN}{think}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}'


def strip_end(text: str, ends: Sequence[str] = ENDS) -> str:
  """The text before its trailing end strings, however many; unchanged where it ends in none."""
  while end := next((e for e in ends if e and text.rstrip().endswith(e)), None):
    text = text.rstrip().removesuffix(end)
  return text


def spans(text: str, ends: Sequence[str] = ENDS) -> Spans:
  """Splits a completion; never raises.

  Well formed: the text is exactly a closed thought, optional white space, a closed answer and an
  optional end (white space and `ends`), and each of the four tags occurs once. The thought lies
  between the first `<think>` and the first `</think>` behind it. The answer of a malformed
  completion is None unless exactly one closed answer block, and no stray answer tag, stands behind
  the thought's end: several answers are no answer, nor is one that the thought has not yet reached.
  """
  _, opened, rest = text.partition(THINK_OPEN)
  think, closed, tail = rest.partition(THINK_CLOSE)
  if not (opened and closed):
    return Spans(None, None, False)
  before, _, rest = tail.partition(ANSWER_OPEN)
  answer, _, after = rest.partition(ANSWER_CLOSE)
  if not (
    tail.count(ANSWER_OPEN) == 1 and rest.count(ANSWER_CLOSE) == tail.count(ANSWER_CLOSE) == 1
  ):
    return Spans(think, None, False)
  once = all(text.count(tag) == 1 for tag in TAGS)
  exact = text.startswith(THINK_OPEN) and not before.strip() and not strip_end(after, ends).strip()
  return Spans(think, answer, once and exact)


def self_checks(text: str) -> int:
  """How many phrases of self-checking the text holds, whole words, in any case."""
  return len(_SELF_CHECK.findall(text))
