"""Compiled programs of a run, announced while they compile."""

from collections.abc import Callable
from typing import Any

from r1jax.core import tree
from r1jax.core.program import Program
from r1jax.sharding import place
from r1jax.train.run import Run
from r1jax.train.state import State


def train_program(
  run: Run,
  what: str,
  step: Callable,
  state: State,
  trains: Callable[[str], bool] | None = None,
) -> Callable[[State, Any], tuple[State, Any]]:
  """The compiled step; the state is donated and keeps its place.

  trains: which parameters are trained, by path; the others are not donated, so that whoever reads
  them beside training may go on. None: all of them.
  """
  if trains is None:
    out = None if run.mesh is None else (place.of(state), None)
    return Program(what, step, run.announce, donate_argnums=0, out_shardings=out)

  def split(state: State) -> tuple[State, Any]:
    mine, rest = tree.split(state.params, lambda path, _: trains(path))
    return state._replace(params=mine), rest

  def whole(state: State, rest: Any) -> State:
    return state._replace(params=tree.merge(state.params, rest))

  def moving(mine: State, rest: Any, batch: Any) -> tuple[State, Any]:
    state, measured = step(whole(mine, rest), batch)
    return split(state)[0], measured

  out = None if run.mesh is None else (place.of(split(state)[0]), None)
  program = Program(what, moving, run.announce, donate_argnums=0, out_shardings=out)

  def train(state: State, batch: Any) -> tuple[State, Any]:
    mine, rest = split(state)
    state, measured = program(mine, rest, batch)
    return whole(state, rest), measured

  return train
