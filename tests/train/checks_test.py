"""What is checked before a run begins."""

import dataclasses

import jax
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Worked
from r1jax.model.config import GQA, Window, Yarn
from r1jax.rollout.collect import Limits
from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.tasks.file import load
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.train import checks, provenance
from r1jax.train.experiment import Checkpoint
from r1jax.train.point import Point
from r1jax.train.state import State
from r1jax.train.supervised import Phase

FEWER = Mixture((Part(Worked(8)),))
MANY = Mixture((Part(Worked(90_000)),))


def check(exp, mesh=None):
  return checks.check(exp, ByteTokenizer(), load(exp.task), mesh, {})


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


def test_a_stage_ends_as_the_model_is(pretraining):
  """What it is evaluated and asked with: the context and the windows of the last phase."""

  def ended(window, last):
    gqa = GQA(2, 2, 8, pattern=Window(window))
    layers = tuple(dataclasses.replace(x, attention=gqa) for x in pretraining.model.layers)
    phases = (Phase(1, length=16, window=2), last)
    stage = dataclasses.replace(pretraining.stages[0], phases=phases)
    model = dataclasses.replace(pretraining.model, layers=layers, mtp=())
    return dataclasses.replace(pretraining, model=model, stages=(stage,))

  for good in (Phase(1, length=16), Phase(1, length=16, window=8)):
    checks.check(ended(8, good), ByteTokenizer(), None, None, {})
  for bad, has in (
    (Phase(1, window=4), 'yarn=None and window=4'),
    (Phase(1, yarn=Yarn(2.0)), r'yarn=Yarn\(factor=2.0.*and window=None'),
  ):
    with pytest.raises(UserError, match=f'the last phase has {has}, config.model others'):
      checks.check(ended(8, bad), ByteTokenizer(), None, None, {})


def test_first_difference_names_the_field_and_both_values(experiment):
  differ = lambda other: config.first_difference(experiment, other)
  assert differ(dataclasses.replace(experiment, seed=3)) == 'config.seed: 0 there, 3 here'
  deep = replaced(
    experiment, sft={'optimizer': dataclasses.replace(experiment.stages[0].optimizer, b1=0.5)}
  )
  assert differ(deep) == 'config.stages[0].optimizer.b1: 0.9 there, 0.5 here'
  fewer = dataclasses.replace(experiment, stages=experiment.stages[:1])
  assert differ(fewer).startswith('config.stages: (SFT(')
  other_type = dataclasses.replace(experiment, task='x')
  assert differ(other_type) == f'config.task: {experiment.task} there, x here'


@pytest.fixture
def store(experiment, bare, tmp_path):
  """A workdir's store with two checkpoints on data 'abc'."""
  run = bare(experiment)
  run.record |= {'data': 'abc'}
  with Store(tmp_path / FOLDER) as run.store:
    for update in (7, 8):
      run.save(
        Point(0, 2, State(jax.numpy.int32(update), {'w': jax.numpy.ones(2)}, ())), block=True
      )
    yield run.store


def test_a_run_goes_on_under_its_config_wherever_it_runs(experiment, store, tmp_path):
  checks.same(experiment, tmp_path, store, 'abc')
  moved = dataclasses.replace(experiment, mesh=Mesh(tensor=2), checkpoint=Checkpoint(every=9))
  checks.same(moved, tmp_path, store, 'abc')
  with pytest.raises(UserError, match=r'config.seed: 0 there, 1 here\); use another --workdir'):
    checks.same(dataclasses.replace(experiment, seed=1), tmp_path, store, 'abc')


def test_a_run_goes_on_with_its_data(experiment, store, tmp_path):
  with pytest.raises(UserError, match=r'other data \(fingerprint abc there, abd here\); put back'):
    checks.same(experiment, tmp_path, store, 'abd')


def test_a_damaged_newest_checkpoint_is_passed_over(experiment, store, tmp_path):
  (tmp_path / FOLDER / '8' / 'checkpoint.json').write_text('')
  checks.same(experiment, tmp_path, store, 'abc')
  with pytest.raises(UserError, match=r'config\.seed'):
    checks.same(dataclasses.replace(experiment, seed=1), tmp_path, store, 'abc')


def test_the_fingerprint_is_of_the_data_alone(experiment):
  assert check(experiment) == check(dataclasses.replace(experiment, seed=5))
  assert check(experiment) != check(replaced(experiment, sft={'data': FEWER}))


def test_what_a_stage_reads_is_opened_once_a_length(pretraining):
  opened = {}
  checks.check(pretraining, ByteTokenizer(), None, None, opened)
  (stage,) = pretraining.stages
  assert list(opened) == [(stage.data, 16), (stage.data, 64)]


def test_facts_differ_with_what_there_is_to_go_on_from(experiment):
  record = provenance.record() | {'data': 'abc'}
  facts = lambda *there: checks.facts(experiment, record, *there)
  assert facts([], []) == facts([], [])
  assert facts([2], []) != facts([], []) != facts([], [{'name': 'after SFT'}])
