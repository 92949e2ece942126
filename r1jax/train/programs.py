"""Compiled programs of a run, announced while they compile."""

from collections.abc import Callable

from r1jax.core.program import Program
from r1jax.sharding import place
from r1jax.train.run import Run
from r1jax.train.state import State


def train_program(run: Run, what: str, step: Callable, state: State) -> Program:
  """The compiled step; the state is donated and keeps its place."""
  out = None if run.mesh is None else (place.of(state), None)
  return Program(what, step, run.announce, donate_argnums=0, out_shardings=out)
