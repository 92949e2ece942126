"""The tables name every tensor of the public checkpoints, and every leaf of ours, once."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import safetensors
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from r1jax.checkpoint.public import families, names
from r1jax.checkpoint.public.options import Options, load
from r1jax.core import tree
from r1jax.model import presets
from r1jax.model.config import GQA, Dense, Layer, ModelConfig, Window
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

CONFIGS = sorted((pathlib.Path(__file__).parent / 'configs').glob('*.json'))


def theirs(table):
  """{public name: shape}; leaves that share a tensor agree on its shape."""
  shapes = {}
  for leaf in table.values():
    for name in (leaf.names or {}).values():
      assert shapes.setdefault(name, leaf.layout.theirs) == leaf.layout.theirs
  return shapes


def ours(cfg):
  """{path: shape} of the parameters that the model is initialized with."""
  shapes = place.templates(None, place.abstract(Transformer(cfg), dummy_inputs(cfg)))
  return {path: leaf.shape for path, leaf in tree.flatten_named(shapes).items()}


def check_leaves(table, cfg):
  assert {path: leaf.shape for path, leaf in table.items()} == ours(cfg)
  for leaf in table.values():
    if leaf.names is not None:
      assert set(leaf.names) == set(itertools.product(*map(range, leaf.stack)))


def check_cover(table):
  """Every number of every public tensor is in one leaf."""
  covered = {name: np.zeros(shape, np.int8) for name, shape in theirs(table).items()}
  for leaf in table.values():
    for name in (leaf.names or {}).values():
      here = np.zeros_like(covered[name])
      leaf.layout.write(np.ones(leaf.layout.ours, np.int8), here)
      covered[name] += here
  assert all((count == 1).all() for count in covered.values())


def test_every_saved_tensor_and_every_leaf_is_named_once(publish, published):
  _, folder = publish(published)
  public = families.parse(load(folder))
  table = names.table(public.model, public.router_bias)
  with safetensors.safe_open(folder / 'model.safetensors', 'np') as file:
    saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
  assert theirs(table) == saved
  check_leaves(table, public.model)
  check_cover(table)


def of_transformers(data):
  """{name: shape} of the whole model as transformers would save it; it has no MTP."""
  kind = data['model_type']
  config = transformers.AutoConfig.for_model(
    kind, **{k: v for k, v in data.items() if k != 'model_type'}
  )
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(config)
  saved = revert_weight_conversion(model, model.state_dict())
  return {name: tuple(tensor.shape) for name, tensor in saved.items()}


@pytest.mark.parametrize('file', CONFIGS, ids=lambda file: file.stem)
def test_published_models_have_the_names_that_transformers_gives_them(file):
  data = json.loads(file.read_text())
  data.pop('quantization_config', None)
  if 'num_nextn_predict_layers' in data:
    data['num_nextn_predict_layers'] = 0
  public = families.parse(Options(data, file.name))
  table = theirs(names.table(public.model, public.router_bias))
  copies = {copy: table[original] for copy, original in names.copies(public.model).items()}
  assert table | copies == of_transformers(data)


@pytest.fixture(name='v3', scope='module')
def _v3():
  return presets.deepseek_v3()


def test_the_prediction_module_of_v3(v3):
  table = names.table(v3, router_bias=True)
  check_leaves(table, v3)
  found = theirs(table)
  last, before = (
    {n.removeprefix(layer): s for n, s in found.items() if n.startswith(layer)}
    for layer in ('model.layers.61.', 'model.layers.60.')
  )
  assert last == before | {
    'enorm.weight': (7168,),
    'hnorm.weight': (7168,),
    'eh_proj.weight': (7168, 14_336),
    'shared_head.norm.weight': (7168,),
  }
  assert names.copies(v3) == {
    'model.layers.61.embed_tokens.weight': 'model.embed_tokens.weight',
    'model.layers.61.shared_head.head.weight': 'lm_head.weight',
  }


def test_v3_has_91_991_tensors_with_those_of_the_scales(v3):
  """What its model.safetensors.index.json holds."""
  found = [*theirs(names.table(v3, router_bias=True)), *names.copies(v3)]
  scaled = ('_proj.weight', 'kv_a_proj_with_mqa.weight')
  scales = [n for n in found if n.endswith(scaled) and not n.endswith('eh_proj.weight')]
  assert len(found) + len(scales) == 91_991


def test_a_tied_model_has_one_matrix_for_embedding_head_and_prediction():
  layer = presets.deepseek_v3().layers[-1]
  cfg = ModelConfig(8, 16, (layer,), mtp=(layer,) * 2, tied=True)
  copies = names.copies(cfg)
  assert set(copies.values()) == {'model.embed_tokens.weight'}
  assert set(copies) == {
    'lm_head.weight',
    'model.layers.1.embed_tokens.weight',
    'model.layers.1.shared_head.head.weight',
    'model.layers.2.embed_tokens.weight',
    'model.layers.2.shared_head.head.weight',
  }
  assert 'head' not in names.table(cfg, router_bias=True)


def test_layers_of_a_repeated_period_keep_their_numbers():
  """(local ×2, global) ×3 and a last layer apart: two runs, three stacks and one."""
  make = lambda pattern: Layer(GQA(2, 1, 4, pattern=pattern), Dense(8))
  local, full = make(Window(3)), make(GQA(2, 1, 4).pattern)
  cfg = ModelConfig(8, 8, (local, local, full) * 3 + (local,), tied=True)
  table = names.table(cfg, router_bias=False)
  check_leaves(table, cfg)
  check_cover(table)
  numbers = {
    path.removesuffix('/attention_scale'): [
      int(name.removeprefix('model.layers.').removesuffix('.input_layernorm.weight'))
      for name in leaf.names.values()
    ]
    for path, leaf in table.items()
    if path.endswith('attention_scale')
  }
  assert sorted(itertools.chain(*numbers.values())) == list(range(10))
  assert numbers['run0/block2'] == [2, 5, 8]


def test_presets_of_ours_have_tables_too():
  for cfg in (presets.tiny_r1(), presets.tiny_dense(), presets.tiny_moe16()):
    check_leaves(names.table(cfg, router_bias=True), cfg)


def test_experts_and_heads_lie_where_the_layouts_say():
  """An example by hand: expert 3 of layer 4 of V3, and the keys' share of kv_b_proj."""
  table = names.table(presets.deepseek_v3(), router_bias=True)
  gate = table['run1/block0/mlp/gate']
  assert gate.shape == (58, 256, 7168, 2048)
  assert gate.names[1, 3] == 'model.layers.4.mlp.experts.3.gate_proj.weight'
  k, v = (table[f'run1/block0/attention/{n}_up'] for n in 'kv')
  assert k.names == v.names and k.names[0,] == 'model.layers.3.self_attn.kv_b_proj.weight'
  assert (k.layout.part, v.layout.part) == (('C', 0, 128), ('C', 128, 256))
