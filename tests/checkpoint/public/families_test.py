"""The published config.json of each family is the model that its publishers describe.

The files in configs/ are those of the Hugging Face repositories of the same name.
"""

import json
import pathlib

import pytest

from r1jax.checkpoint.public import describe, families
from r1jax.checkpoint.public.options import Options
from r1jax.core import tree
from r1jax.core.errors import UserError
from r1jax.model import presets
from r1jax.model.config import GQA, MLA, Dense, Layer, Llama3, ModelConfig, MoE, Rope, Window, Yarn
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place

FOLDER = pathlib.Path(__file__).parent / 'configs'


def published(name, **changes):
  """The options of a published file; changes: other values, `...` for a key taken out."""
  data = json.loads((FOLDER / f'{name}.json').read_text()) | changes
  return Options({k: v for k, v in data.items() if v is not ...}, f'{name}/config.json')


def parsed(name, **changes):
  return families.parse(published(name, **changes)).model


def refusal(name, **changes):
  with pytest.raises(UserError) as caught:
    parsed(name, **changes)
  said = str(caught.value)
  assert said.startswith(f'{name}/config.json: ') and '\n' not in said
  return said.removeprefix(f'{name}/config.json: ')


def dense(vocab, embed, layers, attention, ffw, eps=1e-6, tied=False):
  return ModelConfig(
    vocab, embed, (Layer(attention, Dense(ffw), eps),) * layers, tied=tied, eps=eps
  )


def deepseek_v2():
  yarn = Yarn(40.0, 4096, 163_840, 32.0, 1.0, mscale=1.0)
  mla = MLA(128, 128, 64, 128, kv_latent=512, q_latent=1536, rotary=Rope(1e4, True, yarn))
  moe = MoE(
    1536, 160, 6, shared=2, groups=8, active_groups=3, score='softmax', group_score='best',
    gates='raw', scale=16.0,
  )  # fmt: skip
  layers = (Layer(mla, Dense(12_288)),) + (Layer(mla, moe),) * 59
  return ModelConfig(102_400, 5120, layers)


def mistral(theta, **more):
  return GQA(32, 8, 128, rotary=Rope(theta, False), eps=1e-5, **more)


def qwen3_moe():
  attention = GQA(32, 4, 128, qk_norm=True, rotary=Rope(1e6, False))
  moe = MoE(768, 128, 8, shared=0, score='softmax')
  return ModelConfig(151_936, 2048, (Layer(attention, moe),) * 48)


QWEN3 = GQA(32, 8, 128, qk_norm=True, rotary=Rope(1e6, False))
UNSCALED = Yarn(4.0, 32_768, 131_072, 32.0, 1.0, mscale=0.0)
R1_QWEN3 = GQA(32, 8, 128, qk_norm=True, rotary=Rope(1e6, False, UNSCALED))
LLAMA_1B = GQA(32, 8, 64, rotary=Rope(5e5, False, Llama3(32.0, 8192, 1.0, 4.0)), eps=1e-5)
MODELS = {
  'DeepSeek-V3': presets.deepseek_v3(),
  'DeepSeek-V2': deepseek_v2(),
  'DeepSeek-V2-Lite': presets.deepseek_v2_lite(),
  'DeepSeek-R1-Distill-Qwen-1.5B': presets.qwen_1b5(),
  'DeepSeek-R1-Distill-Llama-8B': presets.llama_8b(),
  'DeepSeek-R1-0528-Qwen3-8B': dense(151_936, 4096, 36, R1_QWEN3, 12_288),
  'Llama-3.1-8B': presets.llama_8b(),
  'Llama-3.2-1B-Instruct': dense(128_256, 2048, 16, LLAMA_1B, 8192, 1e-5, tied=True),
  'Mistral-7B-v0.1': dense(32_000, 4096, 32, mistral(1e4, pattern=Window(4096)), 14_336, 1e-5),
  'Mistral-7B-v0.3': dense(32_768, 4096, 32, mistral(1e6), 14_336, 1e-5),
  'Mistral-Nemo-Base-2407': dense(131_072, 5120, 40, mistral(1e6), 14_336, 1e-5),
  'Qwen2.5-7B': presets.qwen(152_064, 3584, 28, heads=28, kv_heads=4, ffw=18_944),
  'Qwen3-8B': dense(151_936, 4096, 36, QWEN3, 12_288),
  'Qwen3-30B-A3B': qwen3_moe(),
  'SmolLM2-135M-Instruct': presets.smollm2_135m(),
}
# Numbers in the published files; of V3 without the prediction module and the scales.
SIZES = {
  'DeepSeek-V3': 671_026_419_200,
  'DeepSeek-V2': 235_741_434_880,
  'DeepSeek-V2-Lite': 15_706_484_224,
  'DeepSeek-R1-Distill-Qwen-1.5B': 1_777_088_000,
  'DeepSeek-R1-Distill-Llama-8B': 8_030_261_248,
  'DeepSeek-R1-0528-Qwen3-8B': 8_190_735_360,
  'Llama-3.1-8B': 8_030_261_248,
  'Llama-3.2-1B-Instruct': 1_235_814_400,
  'Mistral-7B-v0.1': 7_241_732_096,
  'Mistral-7B-v0.3': 7_248_023_552,
  'Mistral-Nemo-Base-2407': 12_247_782_400,
  'Qwen2.5-7B': 7_615_616_512,
  'Qwen3-8B': 8_190_735_360,
  'Qwen3-30B-A3B': 30_532_122_624,
  'SmolLM2-135M-Instruct': 134_515_008,
}


def test_every_published_file_is_here():
  assert MODELS.keys() == SIZES.keys() == {file.stem for file in FOLDER.glob('*.json')}


@pytest.mark.parametrize('name', MODELS)
def test_a_published_config_is_the_model(name):
  public = families.parse(published(name))
  assert describe.reduced(public.model) == describe.reduced(MODELS[name])
  assert public.model.dtype == 'bfloat16'
  assert public.model.std == published(name).data['initializer_range']
  assert public.fp8_block == ((128, 128) if name == 'DeepSeek-V3' else None)
  assert public.router_bias == (name == 'DeepSeek-V3')


@pytest.mark.parametrize('name', MODELS)
def test_it_has_as_many_parameters_as_were_published(name):
  public = families.parse(published(name))
  model = Transformer(public.model)
  shapes = place.templates(None, place.abstract(model, dummy_inputs(public.model)))
  sizes = {path: tree.count(leaf) for path, leaf in tree.flatten_named(shapes).items()}
  counted = sum(
    size
    for path, size in sizes.items()
    if not path.startswith('mtp') and (public.router_bias or not path.endswith('router/bias'))
  )
  assert counted == SIZES[name]


def test_the_prediction_module_of_v3_has_11_5_billion_beside_its_projection():
  model = parsed('DeepSeek-V3')
  shapes = place.templates(None, place.abstract(Transformer(model), dummy_inputs(model)))
  module = tree.flatten_named(shapes['mtp0'])
  assert module.pop('project').shape == (2 * 7168, 7168)
  assert round(tree.count(module) / 1e9, 1) == 11.5


@pytest.mark.parametrize(
  'given, ours',
  [
    ({'torch_dtype': 'float16'}, 'float32'),
    ({'torch_dtype': 'float32'}, 'float32'),
    ({'torch_dtype': ...}, 'float32'),
    ({'torch_dtype': ..., 'dtype': 'bfloat16'}, 'bfloat16'),
    ({'dtype': None}, 'bfloat16'),
    ({'dtype': 'float32'}, 'float32'),
  ],
)
def test_activations_follow_the_dtype_of_the_weights(given, ours):
  assert parsed('Llama-3.1-8B', **given).dtype == ours


def windows(cfg):
  return [getattr(layer.attention.pattern, 'window', None) for layer in cfg.layers]


def test_the_last_layers_of_qwen_may_see_a_window():
  few = {'num_hidden_layers': 4, 'max_window_layers': 3, 'sliding_window': 64}
  on = few | {'use_sliding_window': True}
  assert windows(parsed('Qwen2.5-7B', **few)) == [None] * 4
  assert windows(parsed('Qwen2.5-7B', **on)) == [None] * 3 + [64]
  assert windows(parsed('Qwen2.5-7B', **on | {'sliding_window': None})) == [None] * 4
  assert windows(parsed('Qwen2.5-7B', **on | {'sliding_window': ...})) == [None] * 3 + [4096]
  kinds = ['sliding_attention', 'full_attention'] * 2
  assert windows(parsed('Qwen3-8B', **on | {'layer_types': kinds})) == [64, None] * 2
  assert windows(parsed('Qwen3-8B', **few | {'layer_types': kinds})) == [None] * 4


def test_a_mistral_without_the_key_has_the_window_that_transformers_gives_it():
  assert set(windows(parsed('Mistral-7B-v0.1', sliding_window=...))) == {4096}


def test_experts_of_qwen3():
  plain = parsed('Qwen3-30B-A3B', mlp_only_layers=[1], norm_topk_prob=False)
  assert plain.layers[1].mlp == Dense(6144)
  assert plain.layers[2].mlp == MoE(768, 128, 8, shared=0, score='softmax', gates='raw')
  assert parsed('Qwen3-30B-A3B', norm_topk_prob=...).layers[0].mlp.gates == 'raw'
  renamed = parsed('Qwen3-30B-A3B', num_experts=..., num_local_experts=128)
  assert renamed == parsed('Qwen3-30B-A3B')


def test_halves_and_pairs_of_deepseek():
  assert parsed('DeepSeek-V3').layers[0].attention.rotary.interleaved
  assert not parsed('DeepSeek-V3', rope_interleave=False).layers[0].attention.rotary.interleaved


@pytest.mark.parametrize(
  'name, key, value, supported',
  [
    ('Mistral-7B-v0.3', 'hidden_act', 'gelu', "'silu'"),
    ('Llama-3.1-8B', 'attention_bias', True, 'False'),
    ('Llama-3.1-8B', 'mlp_bias', True, 'False'),
    ('Llama-3.1-8B', 'rope_interleave', True, 'False'),
    ('Qwen2.5-7B', 'use_mrope', True, 'False'),
    ('Qwen3-8B', 'attention_bias', True, 'False'),
    ('Qwen3-30B-A3B', 'decoder_sparse_step', 2, '1'),
    ('Qwen3-30B-A3B', 'use_sliding_window', True, 'False'),
    ('DeepSeek-V3', 'attention_bias', True, 'False'),
    ('DeepSeek-V3', 'moe_layer_freq', 2, '1'),
    ('DeepSeek-V3', 'topk_method', 'greedy', "'noaux_tc'"),
    ('DeepSeek-V3', 'scoring_func', 'softmax', "'sigmoid'"),
    ('DeepSeek-V2', 'topk_method', 'noaux_tc', "'greedy' or 'group_limited_greedy'"),
    ('DeepSeek-V2', 'norm_topk_prob', True, 'False'),
    ('Llama-3.1-8B', 'is_encoder_decoder', True, 'False'),
    ('Llama-3.1-8B', 'add_cross_attention', True, 'False'),
    ('Llama-3.1-8B', 'torch_dtype', 'int8', 'bfloat16, float16, float32'),
  ],
)
def test_another_value_than_those_supported(name, key, value, supported):
  assert refusal(name, **{key: value}) == f'{key} is {value!r}; r1jax supports {supported}'


@pytest.mark.parametrize(
  'name, key',
  [
    ('Llama-3.1-8B', 'vocab_size'),
    ('Mistral-7B-v0.1', 'num_hidden_layers'),
    ('Qwen3-30B-A3B', 'num_experts'),
    ('DeepSeek-V3', 'n_group'),
    ('DeepSeek-V3', 'topk_group'),
    ('DeepSeek-V3', 'routed_scaling_factor'),
    ('DeepSeek-V2', 'kv_lora_rank'),
  ],
)
def test_a_missing_key(name, key):
  want = f'{key} is missing; it is needed to build the model'
  assert refusal(name, **{key: ...}) == refusal(name, **{key: None}) == want


def test_a_wrong_type():
  assert refusal('Qwen3-8B', head_dim='128') == (
    "head_dim is '128', expected a value of type int; fetch it again"
  )
  assert refusal('Qwen3-8B', tie_word_embeddings=1) == (
    'tie_word_embeddings is 1, expected a value of type bool; fetch it again'
  )


@pytest.mark.parametrize('key, value', [('sliding_window', 4096), ('logit_scale', 0.5)])
def test_an_option_of_another_family_or_of_none(key, value):
  assert refusal('Llama-3.1-8B', **{key: value}) == (
    f"unknown option '{key}'; r1jax does not know whether that changes the model; take it out of "
    'the file if it does not'
  )


def test_an_architecture_that_is_not_known():
  known = ', '.join(families.READERS)
  assert refusal('Llama-3.1-8B', architectures=['LlamaForTokenClassification']) == (
    "no architecture 'LlamaForTokenClassification'; did you mean 'LlamaForCausalLM'? "
    f'known: {known}'
  )
  assert refusal('Llama-3.1-8B', architectures=...) == (
    f"no architecture 'none given'; known: {known}"
  )


@pytest.mark.parametrize(
  'given',
  [
    {'quant_method': 'awq', 'bits': 4},
    {'quant_method': 'gptq', 'bits': 4},
    {'quant_method': 'bitsandbytes', 'load_in_4bit': True},
    {'quant_method': 'fp8'},
    {'quant_method': 'fp8', 'weight_block_size': ['128', '128']},
    {'quant_method': 'fp8', 'weight_block_size': [128]},
    {'quant_method': 'fp8', 'weight_block_size': [0, 128]},
  ],
)
def test_other_quantizations(given):
  assert refusal('Qwen2.5-7B', quantization_config=given) == (
    f'quantization {given["quant_method"]!r} is not supported; r1jax reads unquantized weights, '
    "DeepSeek's block-scaled fp8 (weight_block_size) and GGUF"
  )


@pytest.mark.parametrize('kinds', [['full_attention'], ['linear_attention'] * 36, [[]] * 36])
def test_layer_types(kinds):
  assert refusal('Qwen3-8B', layer_types=kinds) == (
    'layer_types must name 36 full_ or sliding_attention; fetch it again'
  )


@pytest.mark.parametrize(
  'name, changes, said',
  [
    ('Llama-3.1-8B', {'num_key_value_heads': 5}, 'heads=32 must be a multiple of kv_heads=5'),
    ('Llama-3.1-8B', {'num_attention_heads': 0}, 'num_attention_heads is 0, expected at least 1'),
    ('Llama-3.1-8B', {'num_attention_heads': -32}, 'num_attention_heads is -32, expected at least'),
    ('Llama-3.1-8B', {'num_hidden_layers': 0}, 'num_hidden_layers is 0, expected at least 1'),
    ('Qwen3-8B', {'head_dim': 0}, 'head_dim is 0, expected at least 1'),
    ('Qwen3-8B', {'max_window_layers': -1}, 'max_window_layers is -1, expected at least 0'),
    (
      'Qwen3-30B-A3B',
      {'mlp_only_layers': [1, 99]},
      'mlp_only_layers is [1, 99], expected some of 0 to 47',
    ),
    ('DeepSeek-V3', {'first_k_dense_replace': 70}, 'first_k_dense_replace is 70 of 61 layers'),
    ('DeepSeek-V3', {'n_shared_experts': -1}, 'n_shared_experts is -1, expected at least 0'),
    (
      'Mistral-7B-v0.1',
      {'sliding_window': 0},
      'a window holds at least the token itself, window=0 was given',
    ),
    ('DeepSeek-V3', {'n_group': 7}, 'experts must split evenly into groups'),
    ('DeepSeek-V3', {'num_experts_per_tok': 200}, 'active=200 experts do not fit into 4 groups'),
  ],
)
def test_numbers_that_do_not_fit_each_other(name, changes, said):
  found = refusal(name, **changes)
  assert found.startswith(said) and found.endswith('; fetch it again')
