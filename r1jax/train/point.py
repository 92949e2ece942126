"""Where a run is, as one value: what a step begins with, what a checkpoint holds."""

import dataclasses
from typing import Any, NamedTuple

from r1jax.data.stream import Position
from r1jax.rollout.trajectory import RLBatch
from r1jax.train.state import State


class Pending(NamedTuple):
  """A graded rollout with updates still to make.

  Its arrays on the host, how many updates are done, their metrics as sums, and what the rollout
  itself reports.
  """

  batch: RLBatch
  done: int
  total: dict[str, tuple[float, float]]
  figures: dict[str, float]


class Version(NamedTuple):
  """A policy of before: how many updates had made it, and the leaves that are trained."""

  number: int
  params: Any


@dataclasses.dataclass(frozen=True)
class Point:
  """A stage, how many of its steps are done, and all that going on needs.

  position: of the supervised stream; pending: an RL step's rollout that is not used up; asked: how
  many of its questions an RL stage has asked, those of the pending rollout too; older: the weights
  that write the rollout behind the pending one (train/ahead.py), None for the newest.
  """

  stage: int
  step: int
  state: State
  position: Position | None = None
  pending: Pending | None = None
  asked: int = 0
  older: Version | None = None
