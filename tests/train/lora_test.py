"""LoRA through whole runs: what is trained, saved, resumed, rolled out, merged and exported."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from r1jax.algos import lora
from r1jax.algos.lora import LoRA
from r1jax.algos.ppo import PPO, Separate
from r1jax.checkpoint import checksum
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import tree
from r1jax.core.errors import UserError
from r1jax.model.transformer import Transformer
from r1jax.train import converted, merged, parameters, points, reinforce, restored, weights
from r1jax.train.loop import train

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


@pytest.fixture(scope='module')
def base(experiment, one_device, tmp_path_factory):
  """A workdir of plain SFT."""
  workdir = tmp_path_factory.mktemp('base')
  train(dataclasses.replace(experiment, stages=experiment.stages[:1]), workdir)
  return workdir


@pytest.fixture(scope='module')
def exp(experiment, base):
  """Both stages on adapters of rank 4, a checkpoint after every step."""
  every = dataclasses.replace(experiment.checkpoint, every=1)
  spec = LoRA(rank=4, alpha=8.0)
  return dataclasses.replace(experiment, init=str(base), lora=spec, checkpoint=every)


@pytest.fixture(scope='module')
def finished(exp, tmp_path_factory):
  """(workdir, summary, what each rollout was given as (version, checksums))."""
  workdir, seen = tmp_path_factory.mktemp('run'), []
  real = reinforce.rollout

  def spy(run, stage, params, step, asked):
    leaves = jax.tree.leaves(lora.split(params)[0])
    seen.append((step, checksum.start(leaves)()))
    return real(run, stage, params, step, asked)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reinforce, 'rollout', spy)
    summary = train(exp, workdir)
  return workdir, summary, seen


def loaded(path):
  """(experiment, params) of a checkpoint, adapters on their base."""
  model = restored.load(str(path))
  return model.exp, model.params


def test_only_adapters_are_in_checkpoint_and_optimizer(finished):
  workdir, *_ = finished
  store = Store(workdir / FOLDER)
  for step in store.steps():
    held = [name for name in store.describe(step) if name.startswith(('params/', 'reference/'))]
    assert held and all(lora.is_adapter(name) for name in held)
    moments = [name for name in store.describe(step) if '/mu/' in name or '/nu/' in name]
    assert len(moments) == 2 * sum(name.startswith('params/') for name in held)
    assert all(lora.is_adapter(name) for name in moments)
  assert any('/mlp/gate/down' in name for name in held)  # routed experts have theirs


def test_the_base_stays_and_the_adapters_move(finished, base):
  workdir, *_ = finished
  _, params = loaded(workdir)
  mine, rest = lora.split(params)
  _, plain = loaded(base)
  held = tree.flatten_named(plain)
  for path, x in tree.flatten_named(rest).items():
    np.testing.assert_array_equal(x, held[path.removesuffix('/base')])
  moved = [np.abs(x).max() for path, x in tree.flatten_named(mine).items() if path.endswith('up')]
  assert min(moved) > 0


def test_contract_12_each_rollout_has_the_newest_adapters(exp, finished):
  """By version and checksum: those of the checkpoint of the update before it."""
  workdir, _, seen = finished
  store = Store(workdir / FOLDER)
  sft, rl = exp.stages
  assert [step for step, _ in seen] == list(range(rl.steps))
  assert len({str(sums) for _, sums in seen}) == rl.steps  # none is used twice
  for step, sums in seen:
    version = sft.steps + step * rl.minibatches
    params = parameters.weights(store, version, exp.model, None)
    assert checksum.start(jax.tree.leaves(lora.split(params)[0]))() == sums


def test_contract_12_telemetry_names_the_weights(exp, finished):
  rows = [json.loads(line) for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()]
  rows = [r for r in rows if r['stage'] == 'grpo' and 'weights_version' in r]
  sft, rl = exp.stages
  assert [r['weights_version'] for r in rows] == [sft.steps + i * rl.minibatches for i in (0, 1)]
  assert len({r['weights_checksum'] for r in rows}) == 2


def test_contract_11_a_resumed_run_ends_with_the_same_bits(exp, finished, tmp_path):
  workdir, summary, _ = finished
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  steps = Store(copy / FOLDER).steps()
  for step in steps[-2:]:
    shutil.rmtree(copy / FOLDER / str(step))
  again = train(exp, copy)
  first, second = (Store(w / FOLDER).identity() for w in (workdir, copy))
  assert first == second
  assert again['evaluations'][-1]['length'] == summary['evaluations'][-1]['length']


def test_a_new_process_measures_the_same(finished):
  workdir, summary, _ = finished
  model = restored.load(str(workdir))
  figures = restored.evaluate(model)
  assert figures['reward'] == summary['evaluations'][-1]['reward']
  assert figures['length'] == summary['evaluations'][-1]['length']


def test_merged_it_is_an_ordinary_checkpoint_of_the_same_function(finished, tmp_path):
  workdir, *_ = finished
  said = merged.write(str(workdir), tmp_path / 'whole')
  assert 'parameters train' in said
  (exp, ours), (_, theirs) = loaded(workdir), loaded(tmp_path / 'whole')
  assert restored.load(str(tmp_path / 'whole')).exp.lora is None
  tokens = np.random.default_rng(0).integers(0, 256, (2, 24))
  inputs = inputs_of(tokens, len(exp.model.mtp))
  run = jax.jit(lambda p: Transformer(exp.model).apply({'params': p}, inputs).x_BLD)
  np.testing.assert_allclose(run(ours), run(theirs), atol=2e-4)
  with pytest.raises(UserError, match='no adapters to merge'):
    merged.write(str(tmp_path / 'whole'), tmp_path / 'again')


def inputs_of(tokens, depths):
  """Inputs of whole rows; what lies ahead is the row itself, shifted."""
  from r1jax.model.transformer import Inputs

  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  ahead = tuple(np.roll(tokens, -d - 1, 1) for d in range(depths))
  return Inputs(tokens, positions, np.ones_like(tokens), ahead)


def test_who_trains_on_gets_the_sum(exp, finished):
  workdir, *_ = finished
  plain = dataclasses.replace(exp, init=str(workdir), lora=None)
  again = dataclasses.replace(exp, init=str(workdir))
  whole = weights.initial(plain, None)
  assert not any(map(lora.is_adapter, tree.paths(whole)))
  jax.tree.map(np.testing.assert_array_equal, whole, lora.merge(weights.initial(again, None)))


def test_other_weights_under_the_adapters_are_refused(exp, finished, base, tmp_path):
  workdir, *_ = finished
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  marker = copy / FOLDER / str(Store(copy / FOLDER).latest()) / 'checkpoint.json'
  record = json.loads(marker.read_text())
  record['meta']['base'] = '00000000'
  for extra in ('crc', 'digests', 'checksums'):
    record.pop(extra, None)
  marker.write_text(json.dumps(record))
  with pytest.raises(UserError, match='trained on other weights'):
    restored.load(str(copy))
  with pytest.raises(UserError, match='trained on other weights'):
    points.restore(exp, None, Store(copy / FOLDER), Store(copy / FOLDER).latest())


def test_a_run_stays_with_the_step_that_it_began_with(exp, finished, base, tmp_path):
  """Also when its base has a later one by now."""
  workdir, *_ = finished
  later = tmp_path / 'base'
  shutil.copytree(base, later)
  moved = dataclasses.replace(exp, init=str(later))
  first = weights.pinned(moved, tmp_path / 'new')
  assert first.init == str(later / FOLDER / '3')
  with Store(later / FOLDER) as store:
    store.save(9, {'x': jax.numpy.ones(1)}, {}, block=True)
  assert weights.pinned(moved, tmp_path / 'new').init == str(later / FOLDER / '9')
  assert weights.pinned(exp, workdir).init == str(base / FOLDER / '3')
  with Store(base / FOLDER) as store:
    store.save(9, {'x': jax.numpy.ones(1)}, {}, block=True)
  try:
    assert weights.pinned(exp, workdir).init == str(base / FOLDER / '3')
  finally:
    shutil.rmtree(base / FOLDER / '9')


def test_an_export_asks_for_a_merge_first(finished, tmp_path):
  workdir, *_ = finished
  with pytest.raises(UserError, match=r'r1jax\.bin\.merge'):
    converted.out_of(str(workdir), tmp_path / 'out', 'keep', lambda _: None)


def test_lora_needs_a_base_and_no_second_trunk(experiment, exp):
  with pytest.raises(ValueError, match=r'config\.init'):
    dataclasses.replace(experiment, lora=LoRA())
  critic = dataclasses.replace(exp.stages[1], algorithm=PPO(group=2, trunk=Separate()))
  with pytest.raises(ValueError, match='Shared'):
    dataclasses.replace(exp, stages=(critic,))
