"""What a run is made of, and what it leaves when it cannot begin."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.file import File
from r1jax.train.point import Point
from r1jax.train.run import open_run
from r1jax.train.state import State


def test_a_mistake_leaves_no_workdir(experiment, tmp_path):
  workdir = tmp_path / 'run'
  broken = (
    dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab=264)),
    dataclasses.replace(experiment, mesh=Mesh(fsdp=3)),
    dataclasses.replace(experiment, task=File('/no/such.py')),
  )
  for exp in broken:
    with pytest.raises(UserError), open_run(exp, workdir):
      pass
  assert not workdir.exists()


def test_save_keeps_what_going_on_needs(experiment, bare, tmp_path):
  run = bare(experiment)
  run.store = Store(tmp_path / FOLDER)
  state = State(jax.numpy.int32(7), {'w': jax.numpy.ones(2)}, ())
  run.save(Point(0, 4, state, np.array([[3, 1, 9, 0]])), block=True)
  run.save(Point(0, 4, state), block=True)  # saved already
  assert run.store.steps() == [7] and run.saved == 7
  meta = run.store.meta()
  assert (meta['stage'], meta['step'], meta['position']) == (0, 4, [[3, 1, 9, 0]])
  assert meta['provenance']['versions']['jax'] == jax.__version__
  assert files.plain(meta['experiment'])['name'] == 'tiny'
