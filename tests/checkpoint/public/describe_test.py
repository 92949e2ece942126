"""What is described is parsed again to the same model, and transformers builds it."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from r1jax.checkpoint.public import describe, export, families
from r1jax.checkpoint.public.options import Options, load
from r1jax.core.errors import UserError
from r1jax.model import presets
from r1jax.model.config import GQA, Dense, Layer, Llama3, ModelConfig, MoE, Rope, Window, Yarn
from tests.checkpoint.public.conftest import LATENT_YARN

CONFIGS = sorted((pathlib.Path(__file__).parent / 'configs').glob('*.json'))
KINDS = [
  'DeepseekV3',
  'DeepseekV32',
  'DeepseekV2',
  'Llama',
  'Mistral',
  'Qwen2',
  'Qwen3',
  'Qwen3Moe',
]


def parse(data):
  return families.parse(Options(json.loads(json.dumps(data)), 'config.json'))


@pytest.fixture(name='file', params=CONFIGS, ids=lambda file: file.stem)
def _file(request):
  return request.param


def test_v32_has_the_options_that_transformers_publishes():
  config = transformers.DeepseekV32Config(dtype='bfloat16', first_k_dense_replace=3)
  data = config.to_dict() | {
    'architectures': ['DeepseekV32ForCausalLM'],
    'rope_parameters': LATENT_YARN,
  }
  ours = dataclasses.replace(presets.deepseek_v32(), mtp=())
  read = families.parse(Options(data, 'config.json'))
  assert describe.reduced(read.model) == describe.reduced(ours) and read.router_bias
  written = describe.describe(ours, 163_840, 'bfloat16')
  told = [written[f'index_{name}'] for name in ('topk', 'n_heads', 'head_dim')]
  assert told == [2048, 64, 128]
  with pytest.raises(UserError, match='layer_types'):
    families.parse(Options(data | {'layer_types': ['full_attention'] * 61}, 'config.json'))


def test_a_published_model_comes_back(file):
  data = json.loads(file.read_text())
  public = parse(data)
  length, kind = data['max_position_embeddings'], public.architecture
  back = parse(describe.describe(public.model, length, 'bfloat16', kind))
  assert back == dataclasses.replace(public, fp8_block=None)
  assert parse(describe.describe(public.model, length, 'bfloat16')).model == public.model


def test_what_is_written_is_what_was_published(file):
  """Where both files have a key, but those that change nothing."""
  data = json.loads(file.read_text())
  public, length = parse(data), data['max_position_embeddings']
  made = describe.describe(public.model, length, 'bfloat16', public.architecture)
  both = made.keys() & data.keys() - {'sliding_window', 'rope_scaling'}
  if public.architecture.startswith('Qwen3Moe'):
    both -= {'intermediate_size'}  # of the dense layers, of which there are none
  assert len(both) > 15
  assert {key: made[key] for key in both} == {key: data[key] for key in both}


def test_models_of_other_options_come_back(publish, published):
  _, folder = publish(published)
  given = load(folder)
  cfg = families.parse(given).model
  made = describe.describe(cfg, given.data['max_position_embeddings'], 'float32')
  assert parse(made).model == cfg


@pytest.mark.parametrize('cfg', [presets.tiny_r1(), presets.tiny_dense(), presets.tiny_moe16()])
def test_our_own_small_models_come_back(cfg):
  back = parse(describe.describe(cfg, 4096, 'float32')).model
  assert describe.reduced(back) == describe.reduced(cfg)
  assert back.std == cfg.std


def test_a_factor_that_only_some_read_is_written_as_one_that_all_do():
  """attn_factor of R1-0528-Qwen3-8B."""
  (file,) = (file for file in CONFIGS if file.stem == 'DeepSeek-R1-0528-Qwen3-8B')
  made = describe.describe(parse(json.loads(file.read_text())).model, 131_072, 'bfloat16')
  assert made['rope_scaling']['attention_factor'] == 1.0
  assert 'attn_factor' not in made['rope_scaling']


def test_transformers_builds_the_tensors_that_an_export_writes(file, tmp_path):
  data = json.loads(file.read_text())
  if 'num_nextn_predict_layers' in data:
    data['num_nextn_predict_layers'] = 0  # transformers has no prediction modules
  public = parse(data)
  length, kind = data['max_position_embeddings'], public.architecture
  made = describe.describe(public.model, length, 'bfloat16', kind)
  (tmp_path / 'config.json').write_text(json.dumps(made))
  config = transformers.AutoConfig.from_pretrained(tmp_path)
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(config)
  assert type(model).__name__ == kind
  saved = revert_weight_conversion(model, model.state_dict())
  shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
  if public.model.tied:
    assert shapes.pop('lm_head.weight') == shapes['model.embed_tokens.weight']
  written = export.tensors(public, {}, np.dtype('float32'))
  assert {name: shape for name, (_, shape) in written.items()} == shapes


LAYER = Layer(GQA(4, 2, 8), Dense(16))
DENSE = ModelConfig(96, 32, (LAYER,) * 3)
R1 = presets.tiny_r1()


def attention(cfg, **changes):
  layers = tuple(
    dataclasses.replace(l, attention=dataclasses.replace(l.attention, **changes))
    for l in cfg.layers
  )
  return dataclasses.replace(cfg, layers=layers)


def moe(cfg, **changes):
  layers = tuple(
    dataclasses.replace(l, mlp=dataclasses.replace(l.mlp, **changes))
    if isinstance(l.mlp, MoE)
    else l
    for l in cfg.layers
  )
  return dataclasses.replace(cfg, layers=layers, mtp=())


@pytest.mark.parametrize(
  'cfg, kind',
  [
    (DENSE, 'Llama'),
    (attention(DENSE, pattern=Window(5)), 'Mistral'),
    (attention(DENSE, bias=True), 'Qwen2'),
    (attention(DENSE, qk_norm=True), 'Qwen3'),
    (dataclasses.replace(R1, mtp=()), 'DeepseekV3'),
    (R1, 'DeepseekV3'),
    (moe(R1, score='softmax', group_score='best', gates='raw'), 'DeepseekV2'),
  ],
)
def test_the_architecture_follows_from_the_layers(cfg, kind):
  assert describe.describe(cfg, 64, 'float32')['architectures'] == [f'{kind}ForCausalLM']


def test_experts_may_be_in_any_layer_of_qwen3():
  sparse = Layer(GQA(4, 2, 8, qk_norm=True), MoE(8, 4, 2, shared=0, score='softmax'))
  plain = dataclasses.replace(sparse, mlp=Dense(16))
  for layers in ((sparse, plain, sparse), (plain, sparse, plain)):
    made = describe.describe(ModelConfig(96, 32, layers), 64, 'float32')
    assert made['architectures'] == ['Qwen3MoeForCausalLM']
    assert made['mlp_only_layers'] == [i for i, l in enumerate(layers) if l == plain]


def test_a_name_may_be_chosen_among_those_that_fit():
  made = describe.describe(DENSE, 64, 'float32', 'MistralForCausalLM')
  assert (made['model_type'], made['sliding_window']) == ('mistral', None)
  assert parse(made).model.layers == DENSE.layers


def refusal(cfg, name=None, length=64):
  with pytest.raises(UserError) as caught:
    describe.describe(cfg, length, 'float32', name)
  assert '\n' not in str(caught.value)
  return str(caught.value)


ONLY = '; only what public architectures hold can be exported'


@pytest.mark.parametrize(
  'cfg, said',
  [
    (
      dataclasses.replace(DENSE, layers=(LAYER, dataclasses.replace(LAYER, mlp=Dense(24)))),
      'Llama cannot say all of this model: config.layers[1].mlp.ffw: 24 there, 16 here',
    ),
    (
      attention(DENSE, rotary=Rope(1e4, interleaved=True)),
      'Llama cannot say all of this model: config.layers[0].attention.rotary.interleaved: '
      'True there, False here',
    ),
    (
      attention(DENSE, eps=1e-5),
      'Llama cannot say all of this model: config.layers[0].attention.eps: 1e-05 there, 1e-06 here',
    ),
    (
      attention(DENSE, qk_norm=True, bias=True),
      'Qwen3 cannot say all of this model: config.layers[0].attention.bias: True there, False here',
    ),
    (
      dataclasses.replace(R1, mtp_input='stream'),
      "DeepseekV3 cannot say all of this model: config.mtp_input: 'stream' there, 'normed' here",
    ),
    (
      moe(R1, group_score='best'),
      'DeepseekV3 cannot say all of this model: config.layers[1].mlp.group_score: best there, '
      'two_best here',
    ),
  ],
)
def test_what_no_architecture_can_say_is_named(cfg, said):
  kind, rest = said.split(' ', 1)
  assert refusal(cfg).replace("'", '') == f'{kind}ForCausalLM {rest}{ONLY}'.replace("'", '')


def test_a_length_that_the_scaling_contradicts():
  cfg = attention(R1, rotary=Rope(scaling=Yarn(length=8192)))
  assert 'rotary.scaling.length: 8192 there, 64 here' in refusal(dataclasses.replace(cfg, mtp=()))
  describe.describe(dataclasses.replace(cfg, mtp=()), 8192, 'float32')


def test_names_that_do_not_fit_the_layers():
  known = ', '.join(f'{kind}ForCausalLM' for kind in KINDS)
  assert refusal(DENSE, 'GemmaForCausalLM').startswith("no architecture 'GemmaForCausalLM'")
  assert refusal(DENSE, 'GemmaForCausalLM').endswith(f'known: {known}')
  mend = ': export another architecture, or a model whose layers one of them has'
  assert refusal(DENSE, 'DeepseekV3ForCausalLM') == (
    f'DeepseekV3ForCausalLM has MLA in every layer; this model has not{mend}'
  )
  assert refusal(R1, 'LlamaForCausalLM') == (
    f'LlamaForCausalLM has GQA in every layer; this model has not{mend}'
  )
  mixed = dataclasses.replace(R1, layers=(LAYER, *R1.layers), mtp=())
  assert refusal(mixed) == f'LlamaForCausalLM has GQA in every layer; this model has not{mend}'
  assert refusal(attention(DENSE, qk_norm=True), 'Qwen3MoeForCausalLM') == (
    f'Qwen3MoeForCausalLM has experts; a model without any cannot be one{mend}'
  )
  dense = dataclasses.replace(R1, layers=R1.layers[:1], mtp=())
  assert refusal(dense) == (
    f'DeepseekV3ForCausalLM has experts; a model without any cannot be one{mend}'
  )


def test_reduced_drops_what_is_no_part_of_the_function_and_nothing_else():
  loud = dataclasses.replace(attention(DENSE, std=3.0), std=2.0, remat='none', dtype='bfloat16')
  assert describe.reduced(loud) == describe.reduced(DENSE)
  for other in (
    attention(DENSE, rotary=Rope(1e4, False, Llama3())),
    attention(DENSE, pattern=Window(9)),
    dataclasses.replace(DENSE, eps=1e-5),
    dataclasses.replace(DENSE, tied=True),
    dataclasses.replace(DENSE, layers=DENSE.layers[1:]),
    dataclasses.replace(DENSE, mtp=(LAYER,)),
    dataclasses.replace(DENSE, layers=(dataclasses.replace(LAYER, eps=1e-5),) * 3),
    dataclasses.replace(DENSE, layers=(dataclasses.replace(LAYER, mlp=Dense(17)),) * 3),
  ):
    assert describe.reduced(other) != describe.reduced(DENSE)
  stream = dataclasses.replace(R1, mtp_input='stream')
  assert describe.reduced(stream) != describe.reduced(R1)  # without modules it says nothing
  assert describe.reduced(dataclasses.replace(stream, mtp=())) == describe.reduced(moe(R1))
