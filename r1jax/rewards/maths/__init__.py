"""Is an answer mathematically equal to the gold? Texts and numbers first, then math-verify (sympy).

    1. `spelling`: both are made canonical (no LaTeX dress, no prose in front, no boxes); equal
       keys, exact fractions or else the text, end it;
    2. `meaning`: both are read by a small recursive reader, as numbers with units (`expressions`),
       tuples, sets, equations and the like, and these compared;
    3. `symbolic`: what that cannot read or settle goes to math-verify, short texts only.

An answer or gold that cannot be read is UNPARSEABLE, also where both are the same text, and never
CORRECT. Several boxes are several answers, as is '5 or 6'. A unit counts only where both have one;
50% is 50 and 1/2; a decimal of six digits or more may stand for what it rounds. Nothing is
evaluated as Python; numbers beyond 2^15 bits are not evaluated and equal their own text alone.

Cost: 10–300 µs in steps 1 and 2, 10–100 ms in sympy. There is no time limit here: run it in
`pool.Pool`.
"""

from r1jax.rewards.maths import meaning, symbolic
from r1jax.rewards.maths.arithmetic import number
from r1jax.rewards.maths.errors import UndefinedError, UnreadableError
from r1jax.rewards.maths.spelling import canonical, key
from r1jax.rewards.outcome import Outcome

_NO_GOLD = ('nan', 'none', 'null', 'n/a')


def verify(gold: str, answer: str) -> Outcome:
  """CORRECT, WRONG, or UNPARSEABLE where either cannot be read."""
  wanted, given = canonical(gold), canonical(answer)
  if wanted is None or given is None or wanted.casefold() in _NO_GOLD:
    return Outcome.UNPARSEABLE
  a, b = number(wanted), number(given)
  if a is not None and b is not None and (a == b or a.denominator == b.denominator == 1):
    return _outcome(a == b)
  try:
    left, right = meaning.read(wanted), meaning.read(given)
    same = key(wanted) == key(given) or meaning.same(left, right)
    if same is not None:
      return _outcome(same)
  except UndefinedError:
    return Outcome.UNPARSEABLE
  except UnreadableError:
    pass  # the engine may read it
  return symbolic.compare(wanted, given)


def _outcome(correct: bool) -> Outcome:
  return Outcome.CORRECT if correct else Outcome.WRONG
