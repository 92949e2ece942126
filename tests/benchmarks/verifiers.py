"""How fast answers are verified, in a pool of two workers, as rewards are.

  python -m tests.benchmarks.verifiers [--programs=300]

Code: trivial Python programs, each with one stdin test, through `rewards.code` in the bubblewrap
sandbox: a jail, an interpreter and a process for the test each. C and C++ are printed beside them.
Last, how much of that a rollout hides behind its own generation.
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time

from r1jax.algos.grpo import GRPO
from r1jax.core.errors import UserError
from r1jax.model.presets import tiny_r1
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rewards import code
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.rewards.pool import Pool
from r1jax.rewards.sandbox import Bubblewrap, Limits
from r1jax.rollout.collect import Limits as Limited
from r1jax.tasks.file import File
from r1jax.train import rollouts, run, weights
from r1jax.train.experiment import Experiment, Verifier
from r1jax.train.rl import RL
from tests.benchmarks.bars import bar, machine

WORKERS, GROUPS = 2, 32
PROGRAMS_BAR, HIDDEN_BAR = ('≥', 15), ('≥', 90, '%')
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


def code_bar(count: int) -> None:
  """Programs per second."""
  for language in ('c', 'cpp'):
    print(f'{language}: {programs_per_second(language, max(count // 10, 2)):.1f} programs/s')
  bar('python_programs_per_second', programs_per_second('python', count), *PROGRAMS_BAR)


def overlap_bar() -> None:
  """How much of a rollout's verification no step waits for: it is graded wave by wave.

  The same rollout twice: in one wave all of it is waited for, in 16 what is left behind the last.
  """
  with tempfile.TemporaryDirectory() as folder, run.open_run(waved(1), pathlib.Path(folder)) as r:
    spent = {}
    for waves in (16, 1):
      stage = dataclasses.replace(r.exp.stages[0], waves=waves)
      r.exp = dataclasses.replace(r.exp, stages=(stage,))
      for repeat in range(2):  # the first one compiles
        r.timers.take()
        rollouts.sampled(r, stage, weights.initial(r.exp, None), repeat, 0, 0)
      spent[waves] = r.timers.take()
  alone, left = spent[1]['time/reward'], spent[16]['time/reward']
  written = [spent[waves]['time/rollout'] for waves in (1, 16)]
  print(
    f'{GROUPS * 4} completions of 512 tokens, a program verified for each: written in '
    f'{written[0]:.1f} s, then verified in {alone:.1f} s; in 16 waves {written[1]:.1f} s, and '
    f'{left:.2f} s of verifying left'
  )
  bar('verifier_time_hidden', 100 * (1 - left / alone), *HIDDEN_BAR)


def waved(waves: int) -> Experiment:
  """A rollout of a tiny model over a task that verifies a program a completion."""
  limits = Limited(prompt=23, completion=512)
  stage = RL(
    AdamW(Constant(1e-3)), steps=1, algorithm=GRPO(group=4), prompts=GROUPS, limits=limits,
    waves=waves,
  )  # fmt: skip
  task = File(str(pathlib.Path(__file__).with_name('verified_task.py')))
  exp = Experiment('overlap', tiny_r1(), task, (stage,))
  few = dataclasses.replace(exp.evaluation, problems=8, batch=8, limits=limits)
  return dataclasses.replace(exp, evaluation=few, verifier=Verifier(workers=WORKERS))


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--programs', type=int, default=300)
  args = parser.parse_args()
  print(machine())
  try:
    Bubblewrap().check()
  except UserError as e:
    print(e)
    bar('python_programs_per_second', None, *PROGRAMS_BAR)
    bar('verifier_time_hidden', None, *HIDDEN_BAR)
  else:
    code_bar(args.programs)
    overlap_bar()


if __name__ == '__main__':
  main()
