"""Whole runs: their files, resuming, another config, and starting a finished run again."""

import dataclasses
import json
import shutil
import time

import jax
import numpy as np
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core.errors import UserError
from r1jax.train import loop, telemetry
from r1jax.train.loop import train

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


@pytest.fixture(scope='module')
def exp(experiment):
  """Three steps a stage, a checkpoint after the second of each; the reference is refreshed once."""
  sft, reinforce = experiment.stages
  reinforce = dataclasses.replace(reinforce, steps=3, refresh=1)
  return dataclasses.replace(experiment, stages=(sft, reinforce))


@pytest.fixture(scope='module')
def finished(exp, one_device, tmp_path_factory):
  """(workdir, summary) of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, train(exp, workdir)


def arrays(workdir, step=None):
  """Everything in a checkpoint's tree, by name."""
  import orbax.checkpoint as ocp

  store = Store(workdir / FOLDER)
  folder = workdir / FOLDER / str(step or store.latest()) / 'tree'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
    return jax.tree.map(np.asarray, orbax.restore(folder))


def test_a_run_leaves_its_files(exp, finished):
  workdir, summary = finished
  assert Store(workdir / FOLDER).steps() == [2, 3, 7, 9]  # in updates, two an RL step
  rows = telemetry.read(workdir)
  assert [(r['stage'], r['step']) for r in rows] == [
    (s, i) for s in ('sft', 'grpo') for i in (1, 2, 3)
  ]
  assert {'loss', 'gradient_norm', 'mtp_loss', 'balance_loss', 'tokens_per_s'} <= rows[0].keys()
  assert {'reward', 'length', 'kl', 'entropy', 'truncated', 'time/rollout'} <= rows[3].keys()
  assert all(value is not None for row in rows for value in row.values())
  assert list((workdir / 'tb').glob('events*'))
  assert (workdir / 'report.png').read_bytes().startswith(b'\x89PNG')
  assert json.loads((workdir / 'config.json').read_text())['name'] == 'tiny'
  assert json.loads((workdir / 'run.json').read_text())['versions']['jax'] == jax.__version__
  saved = json.loads((workdir / 'summary.json').read_text())
  assert [e['name'] for e in saved['evaluations']] == ['after SFT', 'after GRPO']
  assert saved['stages'].keys() == {'sft', 'grpo'} and saved['name'] == 'tiny'
  assert saved['evaluations'][0]['samples'] == summary['evaluations'][0]['samples'] == 8


def interrupted(workdir, at, tmp_path):
  """A copy of the run as it was after the checkpoint `at`."""
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  for step in Store(copy / FOLDER).steps():
    if step > at:
      shutil.rmtree(copy / FOLDER / str(step))
  return copy


@pytest.mark.parametrize('at', [pytest.param(2, marks=pytest.mark.slow), 7])
def test_contract_11_a_resumed_run_ends_with_the_same_bits(exp, finished, tmp_path, at, capsys):
  """Parameters, router bias, moments, reference and counters; so the last figures too."""
  workdir, summary = finished
  copy = interrupted(workdir, at, tmp_path)
  again = train(exp, copy)
  assert f'resuming at {"sft" if at == 2 else "grpo"} step 2' in capsys.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, arrays(workdir), arrays(copy))
  drop = lambda e: {name: value for name, value in e.items() if name != 'shown'}
  assert [drop(e) for e in again['evaluations']] == [drop(e) for e in summary['evaluations']]
  assert Store(copy / FOLDER).steps()[-1] == 9


def test_a_run_of_another_config_is_left_alone(exp, finished, tmp_path):
  workdir, _ = finished
  before = (workdir / 'config.json').read_text(), Store(workdir / FOLDER).steps()
  other = dataclasses.replace(
    exp, stages=(dataclasses.replace(exp.stages[0], lines=4), exp.stages[1])
  )
  with pytest.raises(
    UserError, match=r'another config \(config.stages\[0\].lines: 8 there, 4 here\)'
  ):
    train(other, workdir)
  assert ((workdir / 'config.json').read_text(), Store(workdir / FOLDER).steps()) == before


def test_a_finished_run_started_again_just_reports(exp, finished, monkeypatch):
  workdir, summary = finished
  before = (workdir / 'metrics.jsonl').read_text()
  (workdir / 'summary.json').unlink()
  monkeypatch.setattr(loop, 'run_rl', lambda *_: pytest.fail('a finished run ran a stage'))
  monkeypatch.setattr(loop, 'evaluate', lambda *_: pytest.fail('and was evaluated again'))
  begin = time.monotonic()
  again = train(exp, workdir)
  assert time.monotonic() - begin < 30
  assert again['evaluations'] == summary['evaluations']
  assert (workdir / 'summary.json').exists() and (workdir / 'metrics.jsonl').read_text() == before


def test_a_run_may_start_from_another_ones_parameters(exp, finished, bare):
  workdir, _ = finished
  run = bare(dataclasses.replace(exp, init=str(workdir / FOLDER / '3')))
  point = loop.begin(run)
  assert (point.stage, point.step, point.position, int(point.state.step)) == (0, 0, None, 0)
  jax.tree.map(np.testing.assert_array_equal, point.state.params, arrays(workdir, 3)['params'])
