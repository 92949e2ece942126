"""What is checked before a run begins."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import files
from r1jax.core.errors import UserError
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.rollout.collect import Limits
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.file import File, load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import run as runs
from r1jax.train.experiment import Checkpoint
from r1jax.train.point import Point
from r1jax.train.run import open_run
from r1jax.train.state import State

MANY = Mixture((Part(Worked(90_000)),))


def check(exp, mesh=None):
  runs.check(exp, ByteTokenizer(), load(exp.task), mesh)


def replaced(exp, **fields):
  """The experiment with fields of its model, evaluation or stages replaced."""
  part, values = next(iter(fields.items()))
  if part in ('sft', 'grpo'):
    stages = [dataclasses.replace(s, **values) if s.name == part else s for s in exp.stages]
    return dataclasses.replace(exp, stages=tuple(stages))
  return dataclasses.replace(exp, **{part: dataclasses.replace(getattr(exp, part), **values)})


def test_a_good_experiment_passes(experiment):
  check(experiment)
  check(experiment, meshes.make(Mesh(fsdp=2, expert=2, tensor=2)))


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'model': {'vocab': 264}}, 'the tokenizer has 265 ids, model.vocab is 264: raise model.vocab'),
    ({'evaluation': {'limits': Limits(5, 12)}}, r'the limit is 5: raise limits.prompt'),
    ({'evaluation': {'problems': 80_000}}, r'evaluation.problems asks for 80000'),
    ({'sft': {'length': 20}}, r'the longest row has \d+ inputs, a line holds 20: raise length'),
    ({'sft': {'data': MANY}}, r'worked problems for sft, the stage asks for 90000'),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_said_at_once(experiment, fields, said):
  with pytest.raises(UserError, match=said):
    check(replaced(experiment, **fields))


@pytest.mark.parametrize(
  'fields',
  [
    {'evaluation': {'problems': 6, 'batch': 6}},
    {'sft': {'lines': 6}},
    {'grpo': {'prompts': 6, 'minibatches': 4}},
  ],
)
def test_batches_that_do_not_split_over_the_mesh_are_said_at_once(experiment, fields):
  mesh = meshes.make(Mesh(fsdp=2, expert=2, tensor=2))
  with pytest.raises(UserError, match=r'a batch of 6 rows does not split over 4 devices'):
    check(replaced(experiment, **fields), mesh)


def test_a_mistake_leaves_no_workdir(experiment, tmp_path):
  workdir = tmp_path / 'run'
  broken = (
    replaced(experiment, model={'vocab': 264}),
    dataclasses.replace(experiment, mesh=Mesh(fsdp=3)),
    dataclasses.replace(experiment, task=File('/no/such.py')),
  )
  for exp in broken:
    with pytest.raises(UserError), open_run(exp, workdir):
      pass
  assert not workdir.exists()


def test_first_difference_names_the_field_and_both_values(experiment):
  differ = lambda other: runs.first_difference(experiment, other)
  assert differ(dataclasses.replace(experiment, seed=3)) == 'config.seed: 0 there, 3 here'
  deep = replaced(
    experiment, sft={'optimizer': dataclasses.replace(experiment.stages[0].optimizer, b1=0.5)}
  )
  assert differ(deep) == 'config.stages[0].optimizer.b1: 0.9 there, 0.5 here'
  fewer = dataclasses.replace(experiment, stages=experiment.stages[:1])
  assert differ(fewer).startswith('config.stages: (SFT(')
  other_type = dataclasses.replace(experiment, task='x')
  assert differ(other_type) == f'config.task: {experiment.task} there, x here'


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
  runs.check_same(experiment, tmp_path, run.store)
  moved = dataclasses.replace(experiment, mesh=Mesh(tensor=2), checkpoint=Checkpoint(every=9))
  runs.check_same(moved, tmp_path, run.store)
  with pytest.raises(UserError, match=r'config.seed: 0 there, 1 here\); use another --workdir'):
    runs.check_same(dataclasses.replace(experiment, seed=1), tmp_path, run.store)
  assert files.plain(meta['experiment'])['name'] == 'tiny'
