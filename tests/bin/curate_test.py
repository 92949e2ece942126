"""The command that makes data with a model: a real run, and its user's mistakes."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.eval.evaluate import Evaluation
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rollout.collect import Limits
from r1jax.sharding import place
from r1jax.tasks.file import File
from r1jax.train.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[2]
TASK = ROOT / 'tests' / 'tasks' / 'my_task_example.py'
SMALL = ModelConfig(265, 8, (Layer(GQA(1, 1, 8), Dense(8)),), remat='none')


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.curate', *map(str, flags)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """An untrained model of one narrow layer, with the example task."""
  folder = tmp_path_factory.mktemp('model')
  evaluation = Evaluation(problems=8, batch=8, limits=Limits(16, 8))
  exp = Experiment('tiny', SMALL, File(str(TASK)), (), evaluation)
  params = place.init(Transformer(SMALL), jax.random.key(0), None, dummy_inputs(SMALL))
  meta = {'experiment': json.loads(config.to_json(exp)), 'stage': None, 'step': 0}
  with Store(folder / FOLDER) as store:
    store.save(0, {'params': params}, meta, block=True)
  return folder


def test_a_file_is_made_and_told_about(checkpoint, tmp_path):
  out = call(
    f'--checkpoint={checkpoint}', f'--out={tmp_path}/new/s.jsonl', '--keep=all', '--prompts=3',
    '--group=2', '--batch=2',
  )  # fmt: skip
  assert out.returncode == 0, out.stderr
  rows = [json.loads(line) for line in (tmp_path / 'new' / 's.jsonl').read_text().splitlines()]
  fields = {'question', 'completion', 'reward', 'outcome', 'length'}
  assert rows and all(row.keys() - {'thought', 'answer'} == fields for row in rows)
  made, prompts, accuracy = out.stdout.splitlines()
  assert (
    made == f'made {tmp_path}/new/s.jsonl: {len(rows)} rows of 6 samples, {6 - len(rows)} rejected'
  )
  assert prompts.startswith('3 of 3 prompts have a row; samples: 0 correct, ')
  assert accuracy.startswith('accuracy 0.0% (0.0% to 39.0%, 95 %), ')
  assert 'samples  3/3  100%' in out.stderr


def test_prompts_that_repeat_are_left_out(checkpoint, tmp_path):
  rows = [{'question': q, 'answer': '4'} for q in ('2 * 2', '4 * 1', '2 * 2')]
  (tmp_path / 'p').write_text('\n'.join(map(json.dumps, rows)))
  out = call(
    f'--checkpoint={checkpoint}', f'--out={tmp_path}/s', '--keep=all', f'--source={tmp_path}/p',
    '--batch=2', '--max_tokens=2',
  )  # fmt: skip
  assert out.returncode == 0, out.stderr
  repeated, made, *_ = out.stdout.splitlines()
  assert repeated == '1 of 3 prompts repeat others and are left out'
  assert ' rows of 8 samples, ' in made


def test_mistakes_are_one_clear_line(checkpoint, tmp_path):
  (tmp_path / 'taken').touch()
  out = call(f'--checkpoint={checkpoint}', f'--out={tmp_path}/taken')
  said = f'error: {tmp_path}/taken exists; choose another --out, or --overwrite it\n'
  assert (out.returncode, out.stdout, out.stderr) == (2, '', said)


def test_mistakes_show_before_the_weights_are_read(checkpoint, tmp_path):
  shutil.copytree(checkpoint, tmp_path / 'model')
  for arrays in list((tmp_path / 'model').rglob('d')):
    shutil.rmtree(arrays)  # whoever reads the weights fails
  exp = 'Experiment("no_task", ModelConfig(265, 8, (Layer(GQA(1, 1, 8), Dense(8)),)), None, ())'
  (tmp_path / 'c.py').write_text(
    'from r1jax.model.config import GQA, Dense, Layer, ModelConfig\n'
    'from r1jax.train.experiment import Experiment\n'
    f'get_config = lambda: {exp}\n'
  )
  for given, said in (
    ([f'--source={tmp_path}/none'], f'{tmp_path}/none'),
    ([f'--config={tmp_path}/c.py'], 'tiny has no task to grade by; name a config that has'),
  ):
    out = call(f'--checkpoint={tmp_path}/model', f'--out={tmp_path}/new', *given)
    assert (out.returncode, out.stdout, out.stderr.count('\n')) == (2, '', 1), out.stderr
    assert said in out.stderr


@pytest.mark.parametrize(
  'given, said',
  [
    (['--k=3'], '--k goes with --kind=logits; leave it out'),
    (['--prompts=3', '--source=x'], '--prompts does not go with --source, which is read whole'),
    (['--kind=pairs', '--keep=all'], '--keep does not go with --kind=pairs, which takes right'),
    (['--kind=logits', '--logits_temperature=0'], '--logits_temperature=0.0; expected a number ab'),
    (
      ['--kind=pairs', '--group=1'],
      '--kind=pairs needs different completions of a prompt: --group=',
    ),
    (['--kind=pairs', '--temperature=0'], '--kind=pairs needs different completions of a prompt: '),
    (['--top_p=2'], '--top_p=2.0; expected a number above 0, 1 at most'),
    (['--kind=poems'], 'flag --kind=poems: value should be one of <samples|pairs|labels|logits>'),
  ],
)
def test_flags_that_would_be_ignored_are_refused(given, said):
  out = call('--checkpoint=nowhere', '--out=nowhere', *given)
  assert (out.returncode, out.stdout, out.stderr.count('\n')) == (2, '', 1)
  assert out.stderr.startswith(f'error: {said}')
