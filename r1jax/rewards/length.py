"""Conciseness, from lengths alone; the unit (characters, tokens) is the caller's.

    budget     1 up to B, then linear down to 0 at 2 B
    relative   s / max(s, |o|) for a correct sample, s the shortest correct one of its group; else 0

Only what is right can be concise: a wrong answer earns nothing by being short. The relative part
follows the questions (a hard one leaves room), the budget needs no group and thus serves PPO.
Kimi k1.5 (arXiv 2501.12599) has the relative idea with the group's range in place of s.
"""

from collections.abc import Sequence

from r1jax.core.errors import UserError


def budget(length: float, limit: float) -> float:
  """Whether a length keeps within its limit, in [0, 1]."""
  if not limit > 0:
    raise UserError(f'a length budget of {limit}; expected more than 0')
  return float(min(1.0, max(0.0, 2 - length / limit)))


def relative(lengths: Sequence[float], correct: Sequence[bool]) -> list[float]:
  """Share of the shortest correct sample's length in each one's, for a group; wrong ones have 0."""
  shortest = min((max(n, 1) for n, c in zip(lengths, correct, strict=True) if c), default=1)
  return [shortest / max(n, shortest) if c else 0.0 for n, c in zip(lengths, correct)]
