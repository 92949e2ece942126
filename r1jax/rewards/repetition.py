"""Repetition within a text, as a penalty in [−1, 0].

    n-grams   1 − distinct / all, over n-grams of tokens (1 − distinct-n, arXiv 1510.03055)
    lines     1 − distinct / all, over lines of twelve characters or more, four at least
    loop      the text ends in a unit of tokens said four times or more, 64 tokens in all: −1

    penalty = min(0, (FREE − max(n-grams, lines)) / (1 − FREE))

Honest thoughts repeat themselves a little ('so the sum is'), hence FREE. Cost: linear; `words`
bounds what is read, and the loop is looked for in the last 2,048 tokens.
"""

from r1jax.rewards.words import MAX_CHARS, grams, tokens, visible

N = 6
FREE = 0.2
_MIN_LINE, _MIN_LINES = 12, 4
_TAIL, _LOOP_TOKENS, _LOOP_TIMES = 2_048, 64, 4


def penalty(text: str) -> float:
  """0 for a text that does not repeat itself, −1 for one that does nothing else."""
  if loops(text):
    return -1.0
  share = max(repeated_grams(text), repeated_lines(text))
  return min(0.0, (FREE - share) / (1 - FREE))


def repeated_grams(text: str, n: int = N) -> float:
  """Share of n-grams that occurred before."""
  found = grams(text, n)
  return 1 - len(set(found)) / len(found) if found else 0.0


def repeated_lines(text: str) -> float:
  """Share of lines that occurred before; short ones (brackets, rulers) are not counted."""
  lines = [line.strip() for line in visible(text[-MAX_CHARS:]).splitlines()]
  lines = [line for line in lines if len(line) >= _MIN_LINE]
  return 1 - len(set(lines)) / len(lines) if len(lines) >= _MIN_LINES else 0.0


def loops(text: str) -> bool:
  """Whether the text ends in a loop."""
  tail = tokens(text[-16 * _TAIL :])[: -_TAIL - 1 : -1]
  matches = _self_matches(tail)
  return any(
    period + n >= max(_LOOP_TOKENS, _LOOP_TIMES * period)
    for period, n in enumerate(matches)
    if period
  )


def _self_matches(items: list[str]) -> list[int]:
  """The Z-function: how many items from i on equal those from 0 on. Linear."""
  z, left, right = [0] * len(items), 0, 0
  for i in range(1, len(items)):
    n = min(right - i, z[i - left]) if i < right else 0
    while i + n < len(items) and items[n] == items[i + n]:
      n += 1
    z[i] = n
    if i + n > right:
      left, right = i, i + n
  return z
