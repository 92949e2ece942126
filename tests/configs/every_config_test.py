"""Every config says how it is run, what it needs and what it reached, and is an Experiment."""

import ast
import pathlib
import re

import pytest

from r1jax.bin.flags import load_config
from r1jax.core.config import from_dict, to_dict
from r1jax.train.experiment import Experiment

FILES = sorted(pathlib.Path('configs').glob('*.py'))
KINDS = {
  'distill.py': ('', ':alone', ':runs/a,data/b'),
  'dpo.py': ('', ':runs/a,data/b.jsonl'),
  'lora.py': ('', ':full'),
  'reward_model.py': ('', ':pairwise', ':pointwise', ':process'),
}


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.name)
def test_its_docstring_has_command_needs_and_result(file):
  said = ast.get_docstring(ast.parse(file.read_text()))
  assert f'python -m r1jax.bin.train --config={file}' in said
  assert re.search(r'Needs: .+\.', said) and re.search(r'Reached[\s\S]*\d (%|nats)', said)


@pytest.mark.parametrize(
  'name', [f.name + kind for f in FILES for kind in KINDS.get(f.name, ('',))]
)
def test_it_is_an_experiment_that_survives_its_file_form(name):
  exp = load_config(Experiment, f'configs/{name}', [])
  assert from_dict(Experiment, to_dict(exp)) == exp and exp.stages
