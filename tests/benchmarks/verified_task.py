"""A task whose verifier costs what a code verifier costs, whatever the model writes.

A model that has learned nothing writes no programs: a correct one is judged in place of its text.
"""

from r1jax.rewards import code
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.sandbox import Bubblewrap, Limits
from r1jax.tasks.file import FunctionTask, from_functions
from r1jax.tasks.task import Example

TESTS = code.Tests(stdin=(('1', '2'),))


def make(seed: int) -> Example:
  """A question of no matter."""
  return Example(id='', question=f'{seed} + 1', answer=str(seed + 1), solution='1')


def passes(example: Example, completion: str) -> float:
  """A program with one test in the sandbox."""
  del example, completion
  outcome = code.verify('print(int(input()) + 1)', TESTS, 'python', Limits(), Bubblewrap())
  return float(outcome is Outcome.CORRECT)


def task() -> FunctionTask:
  """Every completion is verified, well-formed or not."""
  return from_functions('verified', make, lambda *_: True, parts={'passes': (1.0, passes)})
