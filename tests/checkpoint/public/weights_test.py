"""Leaves from public tensors: right values, only what is needed is read, mistakes before any of it.

The package `safetensors` reads the same file for comparison.
"""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.checkpoint.public import families, names, options, weights
from r1jax.checkpoint.public.safetensors import Safetensors
from r1jax.core import tree
from r1jax.core.errors import UserError
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

FILE = 'model.safetensors'
LAYERS, HEADS, NOPE, VALUE, LATENT, EXPERTS = 4, 4, 8, 12, 24, 16


class Counted:
  """Real tensors that remember what was asked of them."""

  def __init__(self, tensors):
    self.tensors, self.table, self.reads = tensors, tensors.table, []

  def read(self, name, index=()):
    self.reads.append(name)
    return self.tensors.read(name, index)


def opened(folder):
  return weights.Weights(families.parse(options.load(folder)), Counted(Safetensors(folder)))


def change(folder, tensors=None, **config):
  """Rewrites the file and keys of config.json; a tensor that is None is left out."""
  file = folder / FILE
  held = safetensors.numpy.load_file(file) | (tensors or {})
  safetensors.numpy.save_file({k: v for k, v in held.items() if v is not None}, file)
  said = json.loads((folder / 'config.json').read_text()) | config
  (folder / 'config.json').write_text(json.dumps(said))


def predicting(folder):
  """Adds a prediction module to a published V3: its last layer again, and what is its own."""
  held, rng = safetensors.numpy.load_file(folder / FILE), np.random.default_rng(0)
  last, new = (f'model.layers.{n}.' for n in (LAYERS - 1, LAYERS))
  extra = {new + k.removeprefix(last): v + 1 for k, v in held.items() if k.startswith(last)}
  width = held['model.norm.weight'].shape[0]
  own = {'enorm': (width,), 'hnorm': (width,), 'shared_head.norm': (width,)}
  for name, shape in (own | {'eh_proj': (width, 2 * width)}).items():
    extra[f'{new}{name}.weight'] = rng.normal(size=shape).astype(np.float32)
  extra[f'{new}embed_tokens.weight'] = held['model.embed_tokens.weight']
  extra[f'{new}shared_head.head.weight'] = held['lm_head.weight']
  change(folder, extra, num_nextn_predict_layers=1)
  return folder


@pytest.fixture(name='v3')
def _v3(publish):
  return predicting(publish('v3')[1])


@pytest.fixture(name='llama')
def _llama(publish):
  return publish('llama tied head')[1]


def test_leaves_are_those_of_the_model(v3):
  found = opened(v3)
  model = found.public.model
  shapes = place.templates(None, place.abstract(Transformer(model), dummy_inputs(model)))
  assert tree.paths(weights.tree(found.leaves, found.leaves.get)) == tree.paths(shapes)
  assert {p: leaf.shape for p, leaf in found.leaves.items()} == {
    p: leaf.shape for p, leaf in tree.flatten_named(shapes).items()
  }
  assert {leaf.dtype for leaf in found.leaves.values()} == {np.dtype('float32')}
  assert not found.tensors.reads


def test_values_of_each_kind_of_leaf(v3):
  """Written out by hand for latent attention, experts and the prediction module."""
  found, theirs = opened(v3), safetensors.numpy.load_file(v3 / FILE)
  layer = lambda n, name: theirs[f'model.layers.{n}.{name}.weight']
  sparse = range(1, LAYERS)
  kv = np.stack([layer(n, 'self_attn.kv_b_proj') for n in sparse])
  kv = kv.reshape(len(sparse), HEADS, NOPE + VALUE, LATENT)
  experts = [[layer(n, f'mlp.experts.{e}.down_proj').T for e in range(EXPERTS)] for n in sparse]
  bias = [theirs[f'model.layers.{n}.mlp.gate.e_score_correction_bias'] for n in sparse]
  q_up = layer(0, 'self_attn.q_b_proj').reshape(HEADS, -1, 12).transpose(2, 0, 1)
  out = layer(0, 'self_attn.o_proj').reshape(-1, HEADS, VALUE).transpose(1, 2, 0)
  want = {
    'embedding': theirs['model.embed_tokens.weight'],
    'head': theirs['lm_head.weight'].T,
    'final_scale': theirs['model.norm.weight'],
    'run0/block0/mlp/gate': layer(0, 'mlp.gate_proj').T[None],
    'run0/block0/attention/q_up': q_up[None],
    'run0/block0/attention/out': out[None],
    'run1/block0/attention/k_up': kv[:, :, :NOPE].transpose(0, 3, 1, 2),
    'run1/block0/attention/v_up': kv[:, :, NOPE:].transpose(0, 3, 1, 2),
    'run1/block0/mlp/down': np.array(experts),
    'run1/block0/mlp/router/bias': np.array(bias),
    'mtp0/embedding_scale': layer(LAYERS, 'enorm'),
    'mtp0/hidden_scale': layer(LAYERS, 'hnorm'),
    'mtp0/project': layer(LAYERS, 'eh_proj').T,
    'mtp0/out_scale': layer(LAYERS, 'shared_head.norm'),
    'mtp0/block/attention_scale': layer(LAYERS, 'input_layernorm'),
    'mtp0/block/mlp/up': np.array(
      [layer(LAYERS, f'mlp.experts.{e}.up_proj').T for e in range(EXPERTS)]
    ),
  }
  for path, value in want.items():
    np.testing.assert_array_equal(found.read(path), value, path)


def test_biases_lie_by_head(publish):
  _, folder = publish('qwen2')
  theirs = safetensors.numpy.load_file(folder / FILE)
  for n, heads in (('q', 4), ('k', 2), ('v', 2)):
    want = [theirs[f'model.layers.{l}.self_attn.{n}_proj.bias'] for l in range(3)]
    got = opened(folder).read(f'run0/block0/attention/{n}_bias')
    np.testing.assert_array_equal(got, np.reshape(want, (3, heads, 8)))


def needed(found, path, index):
  """Names of the public tensors in a slice of a leaf."""
  public = found.public
  leaf = names.table(public.model, public.router_bias)[path]
  ranges = [range(*part.indices(size)) for part, size in zip(index, leaf.stack)]
  ranges += [range(size) for size in leaf.stack[len(ranges) :]]
  return sorted(n for at, n in leaf.names.items() if all(i in r for i, r in zip(at, ranges)))


def test_a_slice_is_that_of_the_whole_and_reads_no_other_tensor(v3):
  found = opened(v3)
  whole = {path: found.read(path) for path in found.leaves}

  @settings(deadline=None, max_examples=200)
  @given(data=st.data())
  def check(data):
    path = data.draw(st.sampled_from(sorted(whole)))
    shape = whole[path].shape
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    index = tuple(slice(*b) for b in bounds)[: data.draw(st.integers(0, len(shape)))]
    found.tensors.reads.clear()
    got = found.read(path, index)
    assert got.dtype == whole[path].dtype
    np.testing.assert_array_equal(got, whole[path][index])
    assert sorted(found.tensors.reads) == needed(found, path, index)

  check()


def test_a_family_without_a_router_bias_reads_zeros(publish):
  found = opened(publish('v2')[1])
  bias = found.read('run1/block0/mlp/router/bias', (slice(1, 3),))
  assert bias.dtype == np.float32 and not found.tensors.reads
  np.testing.assert_array_equal(bias, np.zeros((2, EXPERTS)))


def test_layers_of_different_dtypes_stack_as_float32(llama):
  name = 'model.layers.1.mlp.up_proj.weight'
  rounded = safetensors.numpy.load_file(llama / FILE)[name].astype(np.float16)
  change(llama, {name: rounded})
  found = opened(llama)
  assert found.leaves['run0/block0/mlp/up'].dtype == np.float32
  np.testing.assert_array_equal(
    found.read('run0/block0/mlp/up', (slice(1, 2),))[0], rounded.T.astype(np.float32)
  )


def refusal(folder):
  """The line that opening raises, before any tensor was read."""
  public, tensors = families.parse(options.load(folder)), Counted(Safetensors(folder))
  with pytest.raises(UserError) as caught:
    weights.Weights(public, tensors)
  assert '\n' not in str(caught.value) and not tensors.reads
  return str(caught.value)


UP = 'model.layers.1.mlp.up_proj.weight'
MODEL = 'config.json and weights must be of one model, completely downloaded'


def test_missing_tensors(llama):
  change(llama, {UP: None})
  said = f'tensor {UP} is missing (and 0 more); the files are {llama / FILE} …; '
  assert refusal(llama) == said + MODEL
  change(llama, {'model.layers.2.mlp.up_proj.weight': None, 'model.norm.weight': None})
  assert 'model.norm.weight is missing (and 2 more)' in refusal(llama)


def test_a_head_that_is_neither_there_nor_tied(llama):
  change(llama, tie_word_embeddings=False)
  assert refusal(llama).startswith('tensor lm_head.weight is missing (and 0 more)')


def test_a_prediction_module_that_was_left_out(v3):
  held = safetensors.numpy.load_file(v3 / FILE)
  module = [name for name in held if name.startswith(f'model.layers.{LAYERS}.')]
  change(v3, dict.fromkeys(module))
  assert refusal(v3).endswith(
    'the prediction module is not there at all: set num_nextn_predict_layers to 0 in config.json '
    'if the weights were published without it'
  )
  change(v3, num_nextn_predict_layers=0)
  assert 'mtp0/project' not in opened(v3).leaves
  change(v3, {'model.norm.weight': None}, num_nextn_predict_layers=1)
  assert refusal(v3).endswith(MODEL)


def test_a_prediction_module_that_is_there_in_part(v3):
  name = f'model.layers.{LAYERS}.hnorm.weight'
  change(v3, {name: None})
  assert (
    refusal(v3) == f'tensor {name} is missing (and 0 more); the files are {v3 / FILE} …; {MODEL}'
  )


def test_extra_tensors(llama):
  change(
    llama,
    {'model.layers.3.mlp.up_proj.weight': np.zeros(2, np.float32), 'z': np.zeros(1, np.float32)},
  )
  assert refusal(llama) == (
    f'tensor model.layers.3.mlp.up_proj.weight in {llama / FILE} (and 1 more) has no place in the '
    'LlamaForCausalLM that config.json describes; check that both are of one model'
  )


def test_a_prediction_module_that_the_config_does_not_name(v3):
  change(v3, num_nextn_predict_layers=0)
  assert refusal(v3).endswith(
    'has no place in the DeepseekV3ForCausalLM that config.json describes; these are a prediction '
    'module: set num_nextn_predict_layers to 1 in config.json'
  )
  change(v3, {'z': np.zeros(1, np.float32)})
  assert refusal(v3).endswith('check that both are of one model')


def test_the_frequencies_that_old_checkpoints_hold_are_no_weights(llama):
  change(llama, {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(6, np.float32)})
  assert len(opened(llama).leaves) == 11


@pytest.mark.parametrize('name', [UP, 'lm_head.weight'])
def test_misshaped_tensors(llama, name):
  change(llama, {'lm_head.weight': np.zeros((96, 32), np.float32)})
  shape = {UP: '[48, 32]', 'lm_head.weight': '[96, 32]'}[name]
  change(llama, {name: np.zeros((32, 48), np.float32)})
  assert refusal(llama) == (
    f'tensor {name} in {llama / FILE} has shape [32, 48], config.json asks for {shape}; check that '
    'both are of one model'
  )


@pytest.mark.parametrize('dtype', [np.int8, np.int32, np.bool_, ml_dtypes.float8_e4m3fn])
def test_dtypes_that_are_no_weights(llama, dtype):
  change(llama, {UP: np.zeros((48, 32), dtype)})
  assert refusal(llama) == (
    f'tensor {UP} in {llama / FILE} holds {np.dtype(dtype)}, a weight must be floating point; '
    'r1jax does not read this quantization'
  )


def test_copies_must_be_copies(v3, monkeypatch):
  monkeypatch.setattr(weights, 'BLOCK', 1000)  # so that a matrix is compared in several parts
  opened(v3).check_copies()
  name = f'model.layers.{LAYERS}.embed_tokens.weight'
  other = safetensors.numpy.load_file(v3 / FILE)[name].copy()
  other[-1, -1] += 1
  change(v3, {name: other})
  with pytest.raises(UserError) as caught:
    opened(v3).check_copies()
  assert str(caught.value) == (
    f'{name} in {v3 / FILE} differs from model.embed_tokens.weight, which it must repeat: r1jax '
    'shares them'
  )


def test_the_head_of_a_tied_model_must_be_its_embedding(llama):
  opened(llama).check_copies()  # it is not there
  embedding = safetensors.numpy.load_file(llama / FILE)['model.embed_tokens.weight']
  change(llama, {'lm_head.weight': embedding})
  opened(llama).check_copies()
  change(llama, {'lm_head.weight': embedding * 2})
  with pytest.raises(UserError, match=r'^lm_head\.weight in .* differs from model\.embed_tokens'):
    opened(llama).check_copies()


def test_the_tree_has_a_leaf_for_each_path():
  made = weights.tree(dict.fromkeys(['a', 'b/c', 'b/d/e']), str.upper)
  assert made == {'a': 'A', 'b': {'c': 'B/C', 'd': {'e': 'B/D/E'}}}
