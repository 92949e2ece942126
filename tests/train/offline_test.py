"""Stages over prepared batches in whole runs: preferences, students; resumed and evaluated."""

import dataclasses
import json
import shutil

import pytest

from r1jax.algos.dpo import DPO
from r1jax.algos.reward_model import Pairwise
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core.errors import UserError
from r1jax.data.mix import Mixture, Part
from r1jax.data.preferences import Mistakes
from r1jax.data.sources import Worked
from r1jax.train import restored, telemetry
from r1jax.train.distillation import Distillation, Hidden, Live, Logits
from r1jax.train.loop import train
from r1jax.train.preferences import Preference
from tests.train.conftest import SMOOTH

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def preference(objective, name):
  """Two steps of four rows."""
  return Preference(
    SMOOTH, 2, objective, Mistakes(8), Mistakes(4, skip=8), rows=4, width=64, name=name
  )


@pytest.fixture(scope='module')
def teacher(experiment, one_device, tmp_path_factory):
  """A workdir of SFT."""
  workdir = tmp_path_factory.mktemp('teacher')
  train(dataclasses.replace(experiment, stages=experiment.stages[:1]), workdir)
  return workdir


@pytest.fixture(scope='module')
def exp(experiment, teacher):
  """SFT, DPO, a reward model, a student by logits and by hidden layers: a step behind a step."""
  live = Live(str(teacher), Mixture((Part(Worked(16)),)), length=64)
  stages = (
    dataclasses.replace(experiment.stages[0], steps=1),
    preference(DPO(), 'dpo'),
    preference(Pairwise(), 'judge'),
    Distillation(SMOOTH, 2, live, Logits(k=8), lines=4, name='logits'),
    Distillation(SMOOTH, 2, live, Hidden(((0, 0), (1, 1))), lines=4, name='hidden'),
  )
  every = dataclasses.replace(experiment.checkpoint, every=1, keep=20)
  return dataclasses.replace(experiment, stages=stages, checkpoint=every)


@pytest.fixture(scope='module')
def finished(exp, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, train(exp, workdir)


def test_every_stage_tells_of_itself(exp, finished):
  workdir, summary = finished
  rows = telemetry.read(workdir)
  assert [(r['stage'], r['step']) for r in rows] == [
    (s.name, i + 1) for s in exp.stages for i in range(s.steps)
  ]
  of = lambda name: next(r for r in rows if r['stage'] == name)
  assert {'accuracy', 'margin', 'tokens_per_s'} <= of('dpo').keys() & of('judge').keys()
  assert 'divergence' in of('logits') and 'layer0/error' in of('hidden')
  found = {e['stage']: e for e in summary['evaluations']}
  for name in ('dpo', 'judge'):
    assert found[name]['preference_count'] == 4 and 'calibration_error' in found[name]
  assert (workdir / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_heads_live_as_long_as_their_stage(exp, finished):
  store = Store(finished[0] / FOLDER)
  held = {step: {n.split('/')[1] for n in store.describe(step) if n.startswith('params/')}
          for step in store.steps()}  # fmt: skip
  own = {
    step: {n for n in names if n.startswith(('reward', 'project'))} for step, names in held.items()
  }
  assert [own[i] for i in range(1, 10)] == [
    set(), set(), set(), {'reward'}, {'reward'}, set(), set(),
    {'project0', 'project1'}, {'project0', 'project1'},
  ]  # fmt: skip


slow = pytest.mark.slow


@pytest.mark.parametrize(
  'at',
  [pytest.param(4, marks=pytest.mark.whole), *(pytest.param(at, marks=slow) for at in (2, 6, 8))],
)
def test_contract_11_a_resumed_run_ends_with_the_same_bits(exp, finished, tmp_path, at):
  """From the middle of each stage, its reference, heads and batches included."""
  workdir, summary = finished
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  for step in Store(copy / FOLDER).steps():
    if step > at:
      shutil.rmtree(copy / FOLDER / str(step))
  again = train(exp, copy)
  stores = [Store(w / FOLDER) for w in (workdir, copy)]
  assert len({store.identity(9) for store in stores}) == 1
  drop = lambda e: {name: value for name, value in e.items() if name != 'shown'}
  assert [drop(e) for e in again['evaluations']] == [drop(e) for e in summary['evaluations']]


def test_what_reads_the_policy_reads_no_head(finished):
  model = restored.load(str(finished[0] / FOLDER / '5'))
  assert not {'reward', 'project0'} & model.params.keys()


def test_another_teacher_is_other_data(exp, finished, teacher, tmp_path):
  workdir, _ = finished
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  marker = teacher / FOLDER / '3' / 'checkpoint.json'
  before = marker.read_text()
  record = json.loads(before)
  for extra in ('crc', 'checksums', 'digests'):
    record.pop(extra, None)
  marker.write_text(json.dumps(record))
  try:
    with pytest.raises(UserError, match='a run on other data'):
      train(exp, copy)
  finally:
    marker.write_text(before)
