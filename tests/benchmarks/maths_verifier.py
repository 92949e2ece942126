"""Answers a second of the maths verifier on two cores, through the pool that RL grades with.

  python -m tests.benchmarks.maths_verifier [--answers=4000] [--workers=2]

The answers are all different: a third integers in the dress that models give them; decimals,
fractions, radicals and multiples of π, polynomials, intervals, sets, tuples, matrices, units,
prose; two in five wrong, one in fifteen unreadable, one in two hundred for sympy alone. Workers
have loaded sympy before the clock starts; golds and answers are seen for the first time.
"""

import argparse
import collections
import importlib
import random
import time

from r1jax.rewards import maths
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.rewards.pool import Pool
from tests.benchmarks.bars import bar, machine

DRESS = (
  '{}', '{}', '${}$', '\\boxed{{{}}}', '\\({}\\)', ' {}.', 'The answer is {}.', '**{}**', 'x = {}',
  'The final answer is $\\boxed{{{}}}$.',
)  # fmt: skip
UNITS = ('cm', '\\text{ cm}^2', 'dollars', '\\%', '^\\circ', 'hours', 'km/h', 'apples')
JUNK = (
  '{} {}',
  '\\frac{{{}}}{{{}',
  '<answer>{}.{}</answer>',
  'maybe {} or so, {}?',
  '{}({}',
  '{}^',
)


def number(r: random.Random, n: int) -> tuple[str, str]:
  """An integer with or without thousands separators, or a decimal."""
  if r.random() < 0.25:
    return f'{n / 8}', f'{n / 8:.4f}'
  return str(n), r.choice([str(n), f'{n:,}', f'{n:,}'.replace(',', '{,}'), f'{n}.0'])


def fraction(r: random.Random, n: int) -> tuple[str, str]:
  """A fraction in one of its spellings."""
  d = r.randint(2, 40)
  return f'\\frac{{{n}}}{{{d}}}', r.choice(
    [f'\\dfrac{{{n}}}{{{d}}}', f'{n}/{d}', f'{2 * n}/{2 * d}']
  )


def radical(r: random.Random, n: int) -> tuple[str, str]:
  """Roots and multiples of π."""
  k = r.choice([2, 3, 5, 7])
  if r.random() < 0.4:
    return f'{n}\\pi', r.choice([f'{n}π', f'\\pi \\cdot {n}', f'\\frac{{{2 * n}\\pi}}{{2}}'])
  return f'{n}+{k}\\sqrt{{{k}}}', f'\\sqrt{{{k**3}}} + {n}'


def polynomial(r: random.Random, n: int) -> tuple[str, str]:
  """A product and its sum."""
  k = r.randint(1, 30)
  return f'(x+{n})(x+{k})', f'x^2+{n + k}x+{n * k}'


def several(r: random.Random, n: int) -> tuple[str, str]:
  """Intervals, inequalities, sets, tuples, matrices, two solutions."""
  a, b = n, n + r.randint(1, 99)
  return r.choice([
    (f'[{a},{b})', f'{a} \\le x < {b}'),
    (f'({a},\\infty)', f'x > {a}'),
    (f'(-\\infty,{a})\\cup({b},\\infty)', f'x < {a} \\text{{ or }} x > {b}'),
    (f'\\{{{a},{b}\\}}', f'\\left\\{{{b}, {a}\\right\\}}'),
    (f'({a},{b})', f'\\left({a}, \\frac{{{2 * b}}}{{2}}\\right)'),
    (f'{a}, {b}', f'x = {b} or x = {a}'),
    (f'\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}',
     f'\\begin{{bmatrix}} {a} \\\\ {b} \\end{{bmatrix}}'),
  ])  # fmt: skip


def unit(r: random.Random, n: int) -> tuple[str, str]:
  """A number with a unit behind it."""
  return str(n), f'{n} {r.choice(UNITS)}'


def excluded(r: random.Random, n: int) -> tuple[str, str]:
  """All numbers but one, which sympy alone compares."""
  return f'x \\ne {n}', f'x \\neq {n}.0'


KINDS = (
  (number, 42), (fraction, 13), (radical, 12), (polynomial, 7), (several, 13), (unit, 12),
)  # fmt: skip


def calls(count: int) -> list[tuple[str, str]]:
  """(gold, answer) pairs; no answer twice."""
  r, made = random.Random(0), {}
  kinds, weights = zip(*KINDS, strict=True)
  while len(made) < count:
    n = r.randint(1, 99_999)
    kind = excluded if r.random() < 0.005 else r.choices(kinds, weights)[0]
    gold, answer = kind(r, n)
    chance = r.random()
    if chance < 0.4:
      gold = kind(r, n + r.randint(1, 9))[0]
    if chance > 0.93:
      answer = r.choice(JUNK).format(n, n)
    elif kind in (number, fraction, radical, unit):
      answer = r.choice(DRESS).format(answer)
    made[answer] = gold
  return [(gold, answer) for answer, gold in made.items()]


class Verifier:
  """The grader of a worker, sympy loaded."""

  def __init__(self):
    maths.verify('x \\ne 1', 'x \\ne 2')

  def grade(self, example: str, completion: str) -> Grade:
    """Reward 1 for a correct answer."""
    outcome = maths.verify(example, completion)
    return Grade(outcome, float(outcome is Outcome.CORRECT))


def main() -> bool:
  """Prints outcomes and rate, then the bar; False if it is missed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--answers', type=int, default=4000)
  parser.add_argument('--workers', type=int, default=2)
  args = parser.parse_args()
  print(machine(), flush=True)
  pairs = calls(args.answers)
  # Not this module's own: run as a program it is __main__, which no worker can import.
  build = importlib.import_module('tests.benchmarks.maths_verifier').Verifier
  with Pool(build, workers=args.workers) as pool:
    while not all(worker.ready for worker in pool._workers):  # none imports while the clock runs
      pool.map([('1', '1')] * 4)
    begin = time.perf_counter()
    grades = pool.map(pairs)
    seconds = time.perf_counter() - begin
  tally = collections.Counter(grade.outcome.value for grade in grades)
  print(f'{len(pairs)} answers in {seconds:.2f} s: {dict(tally)}', flush=True)
  return bar('maths_answers_per_second', len(pairs) / seconds, '≥', 2000)


if __name__ == '__main__':
  raise SystemExit(not main())
