"""A public folder to a workdir that trains, and back to the same bytes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import presets
from r1jax.tokenizers.make import Public
from r1jax.train import converted, restored
from r1jax.train.restored import CONVERTED
from r1jax.train.run import PUBLIC, keep_tokenizer
from tests.published import chat_folder

silent = lambda told: None


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A Qwen 2 of two layers with a tokenizer of bytes."""
  folder = tmp_path_factory.mktemp('published') / 'tiny-qwen'
  config = transformers.Qwen2Config(
    vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
  )  # fmt: skip
  torch.manual_seed(0)
  transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
  chat_folder(folder, ['a b'], vocab=260)
  return folder


@pytest.fixture(scope='module')
def workdir(published, tmp_path_factory):
  target = tmp_path_factory.mktemp('converted') / 'workdir'
  converted.into(published, target, workers=2, say=silent)
  return target


def test_a_converted_model_answers_through_its_own_template(workdir):
  model = restored.load(str(workdir))
  assert (model.stage, model.step, model.exp.name) == (CONVERTED, 0, 'tiny-qwen')
  assert model.exp.tokenizer == Public(str(workdir / PUBLIC))
  assert model.tok.decode(model.tok.prompt('hi')) == '<s>hi</s><s>'
  made = restored.generate(model, ['hi'], 2, Sampling(), 4, seed=0)
  assert [len(texts) for texts in made] == [2]


def test_a_workdir_that_moved_brings_its_tokenizer_along(workdir, tmp_path):
  moved = shutil.copytree(workdir, tmp_path / 'moved')
  assert restored.load(str(moved)).exp.tokenizer == Public(str(moved / PUBLIC))


def test_a_run_keeps_the_tokenizer_beside_its_checkpoints(workdir, tmp_path):
  exp = restored.load(str(workdir)).exp
  keep_tokenizer(exp, tmp_path)
  keep_tokenizer(exp, tmp_path)
  names = lambda folder: sorted(p.name for p in folder.iterdir())
  assert names(tmp_path / PUBLIC) == names(workdir / PUBLIC)


def test_out_again_it_is_the_same_bytes_and_transformers_reads_it(published, workdir, tmp_path):
  told = []
  said = converted.out_of(str(workdir), tmp_path / 'out', 'keep', told.append)
  read = lambda folder: safetensors.numpy.load_file(folder / 'model.safetensors')
  old, new = read(published), read(tmp_path / 'out')
  assert old.keys() == new.keys()
  assert all(old[name].tobytes() == new[name].tobytes() for name in old)
  assert told[-1].done == told[-1].total == sum(x.nbytes for x in new.values())
  assert said['torch_dtype'] == 'bfloat16' and said['max_position_embeddings'] == 512
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (tmp_path / 'out' / name).read_bytes() == (published / name).read_bytes()
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert model.dtype == torch.bfloat16


def test_a_model_of_ours_goes_out_too(experiment, params, tmp_path):
  store = Store(tmp_path / 'run' / FOLDER)
  meta = {'experiment': json.loads(config.to_json(experiment)), 'stage': 0, 'step': 1}
  store.save(3, {'params': params}, meta, block=True)
  said = converted.out_of(str(tmp_path / 'run'), tmp_path / 'out', 'float32', silent)
  held = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert said['architectures'][0].startswith('Deepseek')
  assert held['model.norm.weight'].shape == (experiment.model.embed,)
  np.testing.assert_array_equal(held['model.embed_tokens.weight'], params['embedding'])
  assert f'model.layers.{len(experiment.model.layers)}.eh_proj.weight' in held
  copies = sum(n.endswith(('shared_head.head.weight', '.embed_tokens.weight')) for n in held)
  assert copies == 1 + 2 * len(experiment.model.mtp)


def test_errors_come_before_any_output(published, workdir, tmp_path):
  with pytest.raises(UserError, match='already holds a checkpoint'):
    converted.into(published, workdir, workers=1, say=silent)
  with pytest.raises(UserError, match='is not empty'):
    converted.out_of(str(workdir), published, 'keep', silent)
  short = shutil.copytree(published, tmp_path / 'short')
  said = json.loads((short / 'config.json').read_text())
  (short / 'config.json').write_text(json.dumps(said | {'vocab_size': 250}))
  with pytest.raises(UserError, match=r'embed_tokens.* has shape \[264, 32\]'):
    converted.into(short, tmp_path / 'a', workers=1, say=silent)
  cfg = restored.load(str(workdir)).exp.model
  with pytest.raises(UserError, match=r'has 259 ids, the embedding 250 rows: .* not of one model'):
    converted.check_vocabulary(workdir / PUBLIC, dataclasses.replace(cfg, vocab=250))
  assert not (tmp_path / 'a').exists()


def test_the_longest_context_is_that_of_yarn_where_it_decides():
  mla = presets.deepseek_v3()
  assert converted.longest(mla, 4096) == 163_840
  assert converted.longest(presets.llama_8b(), 131_072) == 131_072
