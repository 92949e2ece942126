"""What transformers saved, loaded and exported again is the same, byte for byte."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from r1jax.checkpoint.public import describe, export, names, options, source
from r1jax.core.errors import UserError
from r1jax.model import presets

FILE = 'model.safetensors'
TOKENS = torch.arange(1, 21)[None]


def exported(folder, to, dtype=None):
  """Opens the folder and exports it again; the progress that was told."""
  found = source.open_source(folder)
  length = options.load(folder).data['max_position_embeddings']
  config = describe.describe(found.public.model, length, 'float32', found.public.architecture)
  return list(export.write(found.public, found.leaves, found.read, to, config, dtype))


def tensors(folder):
  return safetensors.torch.load_file(folder / FILE)


def check_same(got, want):
  """The same names, dtypes, shapes and bytes."""
  assert {n: (t.dtype, t.shape) for n, t in got.items()} == {
    n: (t.dtype, t.shape) for n, t in want.items()
  }
  for name, tensor in want.items():
    assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


def logits(model):
  with torch.no_grad():
    return model(TOKENS).logits


def loaded(folder, dtype=torch.float32):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=dtype, attn_implementation='eager'
  ).eval()


def test_every_tensor_is_the_same_again(publish, published, tmp_path):
  model, folder = publish(published)
  exported(folder, tmp_path / 'out')
  check_same(tensors(tmp_path / 'out'), tensors(folder))
  assert torch.equal(logits(loaded(tmp_path / 'out')), logits(model))


@pytest.mark.parametrize('name', ['v3', 'v2', 'llama tied head', 'qwen2', 'qwen3 moe'])
def test_bfloat16_too(publish, name, tmp_path):
  """As transformers saves it: the router's bias in float32, all else in bfloat16."""
  _, folder = publish(name)
  loaded(folder, torch.bfloat16).save_pretrained(tmp_path / 'half')
  kinds = {t.dtype for t in tensors(tmp_path / 'half').values()}
  assert kinds == ({torch.bfloat16, torch.float32} if name == 'v3' else {torch.bfloat16})
  exported(tmp_path / 'half', tmp_path / 'out')
  check_same(tensors(tmp_path / 'out'), tensors(tmp_path / 'half'))
  exported(folder, tmp_path / 'rounded', np.dtype(ml_dtypes.bfloat16))
  check_same(tensors(tmp_path / 'rounded'), tensors(tmp_path / 'half'))


def random_leaves(public, seed=0):
  """Leaves of a model, as numbers: what a training run would hand over."""
  rng = np.random.default_rng(seed)
  shapes = {path: leaf.shape for path, leaf in names.table(public.model, True).items()}
  return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def test_a_prediction_module_is_written_with_its_copies_and_read_again(tmp_path):
  """Published V3 holds embedding and head a second time in layer 61; so do exports."""
  public = describe.public(presets.tiny_r1())
  leaves = random_leaves(public)
  config = describe.describe(public.model, 4096, 'float32')
  steps = export.write(public, leaves, lambda path, index: leaves[path][index], tmp_path, config)
  done = [done for done, _ in steps]
  assert done == sorted(done) and done[-1] == sum(t.nbytes for t in tensors(tmp_path).values())
  written = tensors(tmp_path)
  for copy, original in (
    ('embed_tokens', 'model.embed_tokens'), ('shared_head.head', 'lm_head'),
  ):  # fmt: skip
    assert torch.equal(written[f'model.layers.4.{copy}.weight'], written[f'{original}.weight'])
  assert torch.equal(
    written['model.layers.4.eh_proj.weight'], torch.tensor(leaves['mtp0/project']).T
  )
  found = source.open_source(tmp_path)
  found.check_copies()
  assert found.leaves.keys() == leaves.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(found.read(path), leaf, path)
  assert json.loads((tmp_path / 'config.json').read_text()) == config


def test_progress_counts_every_byte(publish, tmp_path):
  _, folder = publish('v3')
  steps = exported(folder, tmp_path / 'out')
  sizes = [t.nbytes for t in tensors(folder).values()]
  assert {total for _, total in steps} == {sum(sizes)}
  assert sorted(np.diff([0, *(done for done, _ in steps)])) == sorted(sizes)


def test_layers_and_experts_are_in_order(publish):
  """Shards are filled in this order: a layer lies together."""
  public = source.open_source(publish('v3')[1]).public
  order = list(export.pieces(public))
  assert order[0].startswith('lm_head') and order[1].startswith('model.embed_tokens')
  layers = [int(name.split('.')[2]) for name in order if name.startswith('model.layers.')]
  assert layers == sorted(layers)
  experts = [n.split('.')[5] for n in order if n.startswith('model.layers.1.mlp.experts.')]
  assert list(dict.fromkeys(experts)) == [str(e) for e in range(16)]


def refusal(public, leaves, folder, read=None):
  read = read or (lambda path, index: leaves[path][index])
  with pytest.raises(UserError) as caught:
    list(export.write(public, leaves, read, folder, {}))
  assert '\n' not in str(caught.value)
  assert not folder.exists() or not [*folder.iterdir()]
  return str(caught.value)


def test_a_bias_that_the_family_has_no_tensor_for_must_be_zero(publish, tmp_path):
  found = source.open_source(publish('v2')[1])
  leaves = {path: found.read(path) for path in found.leaves}
  path = 'run1/block0/mlp/router/bias'
  leaves[path] = leaves[path] + np.eye(3, 16, dtype=np.float32)
  assert refusal(found.public, leaves, tmp_path / 'out') == (
    f'{path} is not zero, and DeepseekV2ForCausalLM has no tensor for it: the export would choose '
    'other experts; train with auxiliary.gamma=0, which leaves it at zero (the loss of '
    'auxiliary.balance evens the load)'
  )


def test_leaves_must_be_those_of_the_model(publish, tmp_path):
  found = source.open_source(publish('llama')[1])
  leaves = {path: found.read(path) for path in found.leaves}
  path = 'run0/block0/mlp/up'
  assert refusal(found.public, leaves | {path: leaves[path][:2]}, tmp_path / 'out') == (
    f'{path} is [2, 32, 48] in the checkpoint, its config asks for [3, 32, 48]'
  )
  del leaves[path]
  assert refusal(found.public, leaves, tmp_path / 'out') == (
    f'{path} is absent in the checkpoint, its config asks for [3, 32, 48]'
  )


def test_a_read_that_fails_leaves_nothing(publish, tmp_path):
  found = source.open_source(publish('llama')[1])
  config, out = {'architectures': ['LlamaForCausalLM']}, tmp_path / 'out'

  def read(path, index):
    if path == 'head':
      raise UserError('the disk is gone')
    return found.read(path, index)

  public, leaves = found.public, found.leaves
  with pytest.raises(UserError, match='the disk is gone'):
    list(export.write(public, leaves, read, out, config))
  assert not [*out.iterdir()]


def test_what_is_unfinished_has_no_file_that_looks_complete(publish, tmp_path):
  found, out = source.open_source(publish('llama')[1]), tmp_path / 'out'
  steps = export.write(found.public, found.leaves, found.read, out, {})
  for done, total in steps:
    assert [file.name for file in out.iterdir()] == [f'{FILE}.tmp']
    if done > total / 2:
      break
  steps.close()
  assert not [*out.iterdir()]


def test_config_json_comes_after_the_files_beside(publish, tmp_path, monkeypatch):
  found, out = source.open_source(publish('llama')[1]), tmp_path / 'out'
  there = []

  def last(path, value):
    there.extend(sorted(file.name for file in out.iterdir()))

  monkeypatch.setattr(export.files, 'write_json', last)
  beside = {'tokenizer.json': b'{}', 'LICENSE': b'free'}
  list(export.write(found.public, found.leaves, found.read, out, {}, beside=beside))
  assert there == ['LICENSE', FILE, 'tokenizer.json']
  assert (out / 'LICENSE').read_bytes() == b'free'


def test_the_folder_must_not_hold_a_checkpoint(publish, tmp_path):
  _, folder = publish('llama')
  exported(folder, tmp_path / 'out')
  with pytest.raises(UserError, match='is there already; remove it or name another folder'):
    exported(folder, tmp_path / 'out')
