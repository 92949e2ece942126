"""Points into checkpoints and back: onto other meshes, with a rollout under way, past damage."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Damaged, Store
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.task import Grade, Outcome
from r1jax.train import points, reinforce
from r1jax.train import state as states
from r1jax.train.point import Point


def fresh(exp, number, mesh=None):
  """The start of a stage, four updates into the run."""
  stage = exp.stages[number]
  params = states.init_params(Transformer(exp.model), 0, mesh, dummy_inputs(exp.model))
  return Point(number, 0, states.fresh(params, optim.make(stage.optimizer, params), mesh, 4))


def rollout(exp, bare, point, mesh=None):
  """The point with a graded rollout of its stage, one of two updates done."""
  stage = exp.stages[point.stage]
  grade = lambda calls: [Grade(Outcome.WRONG, len(text) % 3 / 2, {}) for _, text in calls]
  run = bare(exp, mesh, grade)
  state = point.state._replace(reference=states.copy(point.state.params))
  t = reinforce.rollout(run, stage, state.params, 0, 0)
  pending = reinforce.prepare(run, stage, state, t, reinforce.comparison(run, stage))
  pending = pending._replace(done=1, total={'loss': (0.1, 1.0)})
  return dataclasses.replace(point, state=state, pending=pending, asked=t.asked)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def stored(exp, mesh, point, folder):
  """A store that holds the point."""
  store = Store(folder / FOLDER)
  store.save(int(point.state.step), *points.saved(exp, mesh, point), block=True)
  return store


@pytest.mark.parametrize(
  'old, more',
  [
    ('sampled', {}),
    ('recomputed', {}),
    ('sampled', {'support': 'replay', 'sampling': Sampling(0.7, 20, 0.9)}),
  ],
)
def test_a_point_with_a_rollout_comes_back_whole(experiment, bare, tmp_path, old, more):
  """Arrays, counters, figures: what a step's remaining updates need."""
  sft, rl = experiment.stages
  rl = dataclasses.replace(rl, algorithm=dataclasses.replace(rl.algorithm, old=old), **more)
  exp = dataclasses.replace(experiment, stages=(sft, rl))
  point = rollout(exp, bare, fresh(exp, 1))
  store = stored(exp, None, point, tmp_path)
  got = points.restore(exp, None, store, 4)
  assert (got.stage, got.step, got.position, got.asked) == (1, 0, None, 4)
  assert got.pending._replace(batch=None) == point.pending._replace(batch=None)
  same(got.state, point.state)
  same(got.pending.batch, point.pending.batch)
  assert (got.pending.batch.old_BL is None) == (old == 'sampled')
  assert (got.pending.batch.support_BLK is None) == (not more)


def test_points_of_before_refill_have_asked_what_their_rollouts_did(experiment):
  sft, rl = experiment.stages
  for pending, rollouts in ((None, 3), ({}, 3), ({'done': 1}, 4)):
    meta = {'step': 3, 'pending': pending}
    assert points.asked(meta, rl) == rollouts * rl.prompts
    assert points.asked(meta, sft) == 0 and points.asked(meta | {'asked': 7}, rl) == 7


@pytest.mark.whole
def test_a_point_moves_to_another_mesh(experiment, bare, tmp_path):
  """From eight devices to four to one: places change, values do not; the position comes along."""
  mesh = meshes.make(Mesh(data=2, fsdp=2, expert=2))
  other = meshes.make(Mesh(fsdp=2, tensor=2), jax.devices()[:4])
  with jax.set_mesh(mesh):
    point = rollout(experiment, bare, fresh(experiment, 1, mesh), mesh)
    stored(experiment, mesh, point, tmp_path / 'eight')
  for target, source, to in ((other, 'eight', 'four'), (None, 'four', 'one')):
    got = points.restore(experiment, target, Store(tmp_path / source / FOLDER), 4)
    same(got.state, point.state)
    same(got.pending.batch, point.pending.batch)
    if target is not None:
      gate = got.state.params['run0']['block0']['mlp']['gate']
      assert gate.sharding.mesh.shape == target.shape
    stored(experiment, target, got, tmp_path / to)
  position = np.array([[3, 1, 9, 0], [4, 2, 8, 1]])
  point = dataclasses.replace(fresh(experiment, 0), position=position)
  store = stored(experiment, None, point, tmp_path / 'sft')
  got = points.restore(experiment, None, store, 4)
  np.testing.assert_array_equal(got.position, position)
  assert got.pending is None and got.state.reference is None


def test_contract_11_a_damaged_checkpoint_is_named_and_passed_over(experiment, tmp_path):
  first = fresh(experiment, 0)
  store = stored(experiment, None, first, tmp_path)
  later = dataclasses.replace(first, step=2, state=first.state._replace(step=first.state.step + 2))
  store.save(6, *points.saved(experiment, None, later), block=True)
  flip(tmp_path / FOLDER / '6')
  said = []
  got = points.newest(experiment, None, store, said.append)
  assert got.step == 0 and int(got.state.step) == 4 and store.steps() == [4]
  assert len(said) == 1 and 'step 6' in said[0] and said[0].endswith('going on from an older one')
  flip(tmp_path / FOLDER / '4')
  with pytest.raises(Damaged, match='step 4'):  # the last one is the user's to give up
    points.newest(experiment, None, store, said.append)
  assert store.steps() == [4]


def flip(folder):
  """One byte of the largest file."""
  largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
