"""How fast answers are verified, in a pool of two workers, as rewards are.

  python -m tests.benchmarks.verifiers [--programs=300]

Code: trivial Python programs, each with one stdin test, through `rewards.code` in the bubblewrap
sandbox: a jail, an interpreter and a process for the test each. C and C++ are printed beside them.
"""

import argparse
import functools
import time

from r1jax.core.errors import UserError
from r1jax.rewards import code
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.rewards.pool import Pool
from r1jax.rewards.sandbox import Bubblewrap, Limits
from tests.benchmarks.bars import bar, machine

WORKERS = 2
PROGRAMS = {
  'python': 'print(int(input()) + {i})',
  'c': '#include <stdio.h>\nint main() {{ int a; scanf("%d", &a); printf("%d", a + {i}); }}',
  'cpp': '#include <iostream>\nint main() {{ int a; std::cin >> a; std::cout << a + {i}; }}',
}


class Coder:
  """Grades programs of one language."""

  def __init__(self, language: code.Language):
    self._language, self._sandbox = language, Bubblewrap()
    code.check(language, self._sandbox)

  def grade(self, example: code.Tests, completion: str) -> Grade:
    """1 for a program that passes its tests."""
    outcome = code.verify(completion, example, self._language, Limits(), self._sandbox)
    return Grade(outcome, float(outcome is Outcome.CORRECT))


def programs_per_second(language: code.Language, count: int) -> float:
  """Different correct programs through a pool of workers, once all have started."""
  from tests.benchmarks import verifiers  # workers know this module by its name, not as __main__

  with Pool(functools.partial(verifiers.Coder, language), WORKERS, seconds=60.0) as pool:
    calls = [
      (code.Tests(stdin=(('1', str(1 + i)),)), PROGRAMS[language].format(i=i)) for i in range(count)
    ]
    pool.map(calls[: 4 * WORKERS])
    begin = time.monotonic()
    grades = pool.map(calls)
    seconds = time.monotonic() - begin
  if not all(g.outcome is Outcome.CORRECT for g in grades):
    raise RuntimeError(f'correct programs in {language} were graded otherwise')
  return count / seconds


def code_bars(count: int) -> None:
  """Programs per second; not run where there is no sandbox."""
  rate = None
  try:
    Bubblewrap().check()
  except UserError as e:
    print(e)
  else:
    for language in ('c', 'cpp'):
      print(f'{language}: {programs_per_second(language, max(count // 10, 2)):.1f} programs/s')
    rate = programs_per_second('python', count)
  bar('python_programs_per_second', rate, '≥', 15)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--programs', type=int, default=300)
  args = parser.parse_args()
  print(machine())
  code_bars(args.programs)


if __name__ == '__main__':
  main()
