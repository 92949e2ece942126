"""The merge binary: its help, its mistakes, and what it makes of a checkpoint."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from r1jax.algos import lora
from r1jax.algos.lora import LoRA
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.tasks.file import File
from r1jax.train import provenance, restored
from r1jax.train import state as states
from r1jax.train.experiment import Experiment
from tests.system import tiny_config

ROOT = pathlib.Path(__file__).parents[2]


def call(*flags):
  command = [sys.executable, '-m', 'r1jax.bin.merge', *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def adapted(tmp_path):
  """(base, adapters) as checkpoints of a model of 20,000 parameters; the adapters are not zero."""
  exp = Experiment('base', tiny_config.MODEL, File(str(tiny_config.TASK)), ())
  params = states.init_params(Transformer(exp.model), 0, None, dummy_inputs(exp.model))
  base = tmp_path / 'base'
  meta = {
    'stage': None, 'step': 0, 'position': None, 'pending': None, 'base': None,
    'provenance': provenance.record(),
  }  # fmt: skip
  said = lambda exp: {'experiment': json.loads(config.to_json(exp))}
  with Store(base / FOLDER) as store:
    store.save(5, {'params': params}, meta | said(exp), block=True)
    identity = store.identity(5)
  spec = LoRA(rank=2, alpha=4.0)
  exp = dataclasses.replace(exp, name='lora', init=str(base / FOLDER / '5'), lora=spec)
  mine = lora.split(lora.attach(params, spec, jax.random.key(0)))[0]
  mine = jax.tree.map(lambda x: x + 0.01, mine)
  with Store(tmp_path / 'lora' / FOLDER) as store:
    store.save(7, {'params': mine}, meta | said(exp) | {'base': identity}, block=True)
  return base, tmp_path / 'lora'


@pytest.mark.whole
def test_the_sum_lies_in_an_ordinary_checkpoint(adapted, tmp_path):
  base, adapters = adapted
  made = call(f'--checkpoint={adapters}', f'--target={tmp_path / "whole"}')
  assert made.returncode == 0, made.stderr
  assert 'step 7 merged with' in made.stdout and 'parameters train' in made.stdout
  whole, parts, before = (restored.load(str(w)) for w in (tmp_path / 'whole', adapters, base))
  assert whole.exp.lora is None and whole.exp.init is None and whole.step == 7
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, lora.merge(parts.params)
  )
  out = lambda model: model.params['run0']['block0']['attention']['out']
  assert np.abs(out(whole) - out(before)).max() > 1e-4
  again = call(f'--checkpoint={adapters}', f'--target={tmp_path / "whole"}')
  assert again.returncode == 2 and again.stderr.count('\n') == 1
  assert 'already holds a checkpoint' in again.stderr


def test_whole_weights_are_refused_in_one_line(adapted, tmp_path):
  base, _ = adapted
  out = call(f'--checkpoint={base}', f'--target={tmp_path / "whole"}')
  assert out.returncode == 2 and out.stderr.count('\n') == 1
  assert 'has no adapters to merge' in out.stderr and not (tmp_path / 'whole').exists()


def test_a_base_that_is_gone_is_named(adapted, tmp_path):
  base, adapters = adapted
  base.rename(tmp_path / 'elsewhere')
  out = call(f'--checkpoint={adapters}', f'--target={tmp_path / "whole"}')
  assert out.returncode == 2 and 'the base of the LoRA checkpoint' in out.stderr
  assert not (tmp_path / 'whole').exists()


def test_help_lists_the_flags():
  out = call('--help').stdout
  assert '--checkpoint' in out and '--target' in out
