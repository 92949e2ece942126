"""DeepSeek's public weights give what DeepSeek's reference inference code computes from them.

Expected numbers are the float64 of reference.py, not those of transformers, which has no prediction
module. Public implementations part from that code, or did, where a test is called difference_…;
each difference is shown to matter, by the other choice giving other numbers.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from r1jax.checkpoint.public import families, options, source
from r1jax.core import tree
from r1jax.engine import generate
from r1jax.model import cache as caches
from r1jax.model import rope, transformer
from r1jax.model.block import Block
from r1jax.model.config import runs
from r1jax.model.transformer import Inputs, Transformer
from r1jax.model.types import LayerIn, Place

_SPEC = importlib.util.spec_from_file_location(
  'deepseek_reference', pathlib.Path(__file__).with_name('reference.py')
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

# Keys as published (huggingface.co/deepseek-ai), sizes small; fp32, so that it can be compared.
V3 = {
  'architectures': ['DeepseekV3ForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
  'auto_map': {'AutoConfig': 'configuration_deepseek.DeepseekV3Config'}, 'bos_token_id': 0,
  'eos_token_id': 1, 'ep_size': 1, 'first_k_dense_replace': 1, 'hidden_act': 'silu',
  'hidden_size': 32, 'initializer_range': 0.02, 'intermediate_size': 48, 'kv_lora_rank': 24,
  'max_position_embeddings': 163840, 'model_type': 'deepseek_v3', 'moe_intermediate_size': 16,
  'moe_layer_freq': 1, 'n_group': 4, 'n_routed_experts': 16, 'n_shared_experts': 1,
  'norm_topk_prob': True, 'num_attention_heads': 4, 'num_experts_per_tok': 4,
  'num_hidden_layers': 3, 'num_key_value_heads': 4, 'num_nextn_predict_layers': 1,
  'q_lora_rank': 12, 'qk_nope_head_dim': 8, 'qk_rope_head_dim': 16, 'rms_norm_eps': 1e-06,
  'rope_scaling': {
    'beta_fast': 32, 'beta_slow': 1, 'factor': 40, 'mscale': 1.0, 'mscale_all_dim': 1.0,
    'original_max_position_embeddings': 4096, 'type': 'yarn'},
  'rope_theta': 10000, 'routed_scaling_factor': 2.5, 'scoring_func': 'sigmoid',
  'tie_word_embeddings': False, 'topk_group': 2, 'topk_method': 'noaux_tc',
  'torch_dtype': 'float32', 'transformers_version': '4.33.1', 'use_cache': True,
  'v_head_dim': 12, 'vocab_size': 96,
}  # fmt: skip
V2 = {key: value for key, value in V3.items() if key != 'num_nextn_predict_layers'} | {
  'architectures': ['DeepseekV2ForCausalLM'], 'aux_loss_alpha': 0.001, 'model_type': 'deepseek_v2',
  'n_shared_experts': 2, 'norm_topk_prob': False, 'pretraining_tp': 1, 'seq_aux': True,
  'routed_scaling_factor': 16.0, 'scoring_func': 'softmax', 'topk_method': 'group_limited_greedy',
}  # fmt: skip
GREEDY = {'n_group': 1, 'topk_group': 1, 'topk_method': 'greedy', 'routed_scaling_factor': 1.0}
YARN = V3['rope_scaling']
SHORT = V3 | {'max_position_embeddings': 4096, 'q_lora_rank': None, 'num_nextn_predict_layers': 0}
CONFIGS = {
  'v3': V3,
  'v3 not extended, no query latent, no prediction': SHORT,
  'v2': V2,
  'v2 lite': V2 | GREEDY | {
    'q_lora_rank': None,
    'rope_scaling': YARN | {'mscale': 0.707, 'mscale_all_dim': 0.707},
  },
}  # fmt: skip
FP8 = {
  'quantization_config': {
    'activation_scheme': 'dynamic',
    'fmt': 'e4m3',
    'quant_method': 'fp8',
    'weight_block_size': [128, 128],
  },
  'torch_dtype': 'bfloat16',
}
EXACT, B, T = 2e-5, 2, 24
TEXT = np.random.default_rng(0).integers(1, 96, (B, T + 1))
TOKENS, AHEAD = TEXT[:, :-1], TEXT[:, 1:]


def attention_shapes(c):
  heads, rotated = c['num_attention_heads'], c['qk_rope_head_dim']
  key, value = c['qk_nope_head_dim'], c['v_head_dim']
  D, R, S = c['hidden_size'], c['kv_lora_rank'], c['q_lora_rank']
  yield from {
    'kv_a_proj_with_mqa': (R + rotated, D),
    'kv_a_layernorm': (R,),
    'kv_b_proj': (heads * (key + value), R),
    'o_proj': (D, heads * value),
  }.items()
  if S is None:
    yield 'q_proj', (heads * (key + rotated), D)
  else:
    yield from {'q_a_proj': (S, D), 'q_a_layernorm': (S,)}.items()
    yield 'q_b_proj', (heads * (key + rotated), S)


def mlp_shapes(c, dense):
  D, F, E = c['hidden_size'], c['moe_intermediate_size'], c['n_routed_experts']
  widths = {'': c['intermediate_size']}
  if not dense:
    widths = {f'experts.{e}.': F for e in range(E)}
    widths['shared_experts.'] = F * c['n_shared_experts']
    yield 'gate', (E, D)
  for at, width in widths.items():
    yield f'{at}gate_proj', (width, D)
    yield f'{at}up_proj', (width, D)
    yield f'{at}down_proj', (D, width)


def shapes(c):
  """{public name without '.weight': shape} of all but the selection bias and the copies."""
  D, V, count = c['hidden_size'], c['vocab_size'], c['num_hidden_layers']
  found = {'model.embed_tokens': (V, D), 'model.norm': (D,), 'lm_head': (V, D)}
  for n in range(count + c.get('num_nextn_predict_layers', 0)):
    at = f'model.layers.{n}'
    found |= {f'{at}.self_attn.{name}': shape for name, shape in attention_shapes(c)}
    dense = n < c['first_k_dense_replace']
    found |= {f'{at}.mlp.{name}': shape for name, shape in mlp_shapes(c, dense)}
    found |= {f'{at}.{name}': (D,) for name in ('input_layernorm', 'post_attention_layernorm')}
    if n >= count:
      found |= {f'{at}.{name}': (D,) for name in ('enorm', 'hnorm', 'shared_head.norm')}
      found[f'{at}.eh_proj'] = D, 2 * D
  return found


def weights(c, seed=0):
  """Public names to torch tensors: all parts show in the logits, s + b is below zero."""
  random = torch.Generator().manual_seed(seed)
  made = {}
  for name, shape in shapes(c).items():
    if len(shape) == 2:
      made[f'{name}.weight'] = torch.randn(shape, generator=random) * 0.15
    else:
      made[f'{name}.weight'] = torch.rand(shape, generator=random) + 0.5
    if name.endswith('.mlp.gate') and c['topk_method'] == 'noaux_tc':
      bias = torch.rand(shape[0], generator=random) * 0.5 - 2
      made[f'{name}.e_score_correction_bias'] = bias
  if c.get('num_nextn_predict_layers'):
    at = f'model.layers.{c["num_hidden_layers"]}'
    made[f'{at}.embed_tokens.weight'] = made['model.embed_tokens.weight'].clone()
    made[f'{at}.shared_head.head.weight'] = made['lm_head.weight'].clone()
  return made


def save(folder, config, tensors):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.torch.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


@pytest.fixture(name='ours')
def _ours(tmp_path, load):
  """(config, parameters) as loaded from tensors that were saved under public names."""
  return lambda config, tensors: load(save(tmp_path / 'published', config, tensors))


def theirs(config, tensors, **choices):
  arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
  return reference.DeepSeek(config, arrays, reference.Choices(**choices))


def attention(config):
  """Ours, of a public config."""
  return families.parse(options.Options(config, 'config.json')).model.layers[0].attention


def inputs(cfg):
  """TOKENS, from position 0 on, and what comes after each of them."""
  positions = jnp.broadcast_to(jnp.arange(T), (B, T))
  ahead = (jnp.asarray(AHEAD),) * len(cfg.mtp)
  return Inputs(jnp.asarray(TOKENS), positions, jnp.ones_like(positions), ahead)


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params):
  """(Output, logits of all positions, logits of the prediction module)."""
  out = Transformer(cfg).apply({'params': params}, inputs(cfg))
  head = transformer.head(params, cfg).astype(cfg.dtype)
  return out, out.x_BLD @ head, [y_BLD @ head for y_BLD in out.mtp]


def experts(out, cfg):
  """The ids that we chose, by layer number."""
  places = tree.places([(len(run.period), run.repeats) for run in runs(cfg.layers)])
  routes = {n: out.routes[i][j].experts for n, (i, j, _) in enumerate(places)}
  return {
    n: np.asarray(routes[n][r]) for n, (_, _, r) in enumerate(places) if routes[n] is not None
  }


def distance(got, want):
  """The largest difference, as a part of the largest value."""
  return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


def assert_experts(got, want):
  assert got.keys() == want.keys()
  for n, ids_BLA in want.items():
    np.testing.assert_array_equal(got[n], ids_BLA)


@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_experts(ours, name):
  config = CONFIGS[name]
  tensors = weights(config)
  cfg, params = ours(config, tensors)
  mtp = config.get('num_nextn_predict_layers', 0)
  want = theirs(config, tensors)(TOKENS, AHEAD if mtp else None)
  out, logits, ahead = forward(cfg, params)
  assert_experts(experts(out, cfg), want.ids_BLA)
  assert distance(logits, want.logits_BLV) <= EXACT
  assert len(ahead) == mtp
  assert all(distance(y, want.mtp_BLV) <= EXACT for y in ahead)


@pytest.mark.parametrize('name', ['v3', 'v2 lite'])
def test_states_after_each_block(ours, name):
  config = CONFIGS[name]
  tensors = weights(config)
  cfg, params = ours(config, tensors)
  table = [(len(run.period), run.repeats) for run in runs(cfg.layers)]
  given = inputs(cfg)
  place = Place(given.positions_BL, given.segments_BL)
  apply = jax.jit(
    lambda spec, p, x: Block(spec).apply({'params': p}, x, place, LayerIn())[0], static_argnums=0
  )
  x_BLD = params['embedding'][TOKENS]
  for n, want in enumerate(theirs(config, tensors)(TOKENS).states_BLD):
    x_BLD = apply(cfg.layers[n], tree.layer(params, table, n), x_BLD)
    assert distance(x_BLD, want) <= EXACT


@pytest.mark.parametrize('name', ['v3', 'v2 lite'])
def test_cached_decode(ours, name):
  """Half of the text at once (keys and values expanded), the rest one by one (absorbed)."""
  config = CONFIGS[name]
  tensors = weights(config)
  cfg, params = ours(config, tensors)
  want = theirs(config, tensors)(TOKENS).logits_BLV
  prefill = jax.jit(generate.prefill, static_argnums=1)
  decode = jax.jit(generate.decode, static_argnums=1)
  half, tokens = T // 2, jnp.asarray(TOKENS)
  lengths, live = jnp.full(B, half), jnp.ones(B, bool)
  logits, cache, _ = prefill(params, cfg, tokens[:, :half], lengths, caches.empty(cfg, B, T))
  found = [logits]
  for at in range(half, T):
    logits, cache, _ = decode(params, cfg, tokens[:, at], jnp.full(B, at), live, cache)
    found.append(logits)
  assert distance(np.stack(found, 1), want[:, half - 1 :]) <= EXACT


def test_difference_closed_groups_are_minus_infinity_not_zero(ours):
  tensors = weights(V3)
  cfg, params = ours(V3, tensors)
  biases = [b for name, b in tensors.items() if name.endswith('bias')]
  assert len(biases) == 3 and all((1 + b < 0).all() for b in biases)  # and so s + b below zero
  out, logits, _ = forward(cfg, params)
  want, zero = theirs(V3, tensors)(TOKENS), theirs(V3, tensors, closed=0.0)(TOKENS)
  assert_experts(experts(out, cfg), want.ids_BLA)
  assert distance(logits, want.logits_BLV) <= EXACT
  # In the first layer of experts, where both see the same: zero beats every open expert.
  assert not (want.ids_BLA[1][..., :, None] == zero.ids_BLA[1][..., None, :]).any()
  assert distance(zero.logits_BLV, want.logits_BLV) > 0.1


def test_difference_the_selection_bias_is_fp32_in_a_bfloat16_model(ours):
  """Biases that are all the same in bfloat16, and scores that are all the same, choose by fp32."""
  config = V3 | {'torch_dtype': 'bfloat16', 'num_nextn_predict_layers': 0}
  random = torch.Generator().manual_seed(1)
  tensors = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
  for name in [name for name in tensors if name.endswith('bias')]:
    tensors[name] = torch.rand(16, generator=random) * 1e-3 - 1
    assert torch.unique(tensors[name].bfloat16()).numel() == 1
    gate = name.replace('e_score_correction_bias', 'weight')
    tensors[gate] = torch.zeros_like(tensors[gate])
  cfg, params = ours(config, tensors)
  router = params['run1']['block0']['mlp']['router']
  assert (cfg.dtype, router['weight'].dtype, router['bias'].dtype) == (
    'bfloat16', jnp.bfloat16, jnp.float32
  )  # fmt: skip
  want = theirs(config, tensors)(TOKENS).ids_BLA
  rounded = theirs(config, tensors, bias=ml_dtypes.bfloat16)(TOKENS).ids_BLA
  assert all((want[n] != rounded[n]).any() for n in want)
  assert_experts(experts(forward(cfg, params)[0], cfg), want)


def test_difference_mscale_is_squared_into_the_softmax(ours):
  tensors = weights(V3)
  cfg, params = ours(V3, tensors)
  want, wrong = (theirs(V3, tensors, mscale=m)(TOKENS).logits_BLV for m in (True, False))
  assert distance(forward(cfg, params)[1], want) <= EXACT
  assert distance(wrong, want) > 0.01


@pytest.mark.parametrize('mscale', [1.0, 0.707])
def test_difference_mscale_is_that_of_the_config(mscale):
  scaling = YARN | {'mscale': mscale, 'mscale_all_dim': mscale}
  scale = rope.softmax_scale(attention(V3 | {'rope_scaling': scaling}).rotary, 192)
  assert scale == pytest.approx(192**-0.5 * (0.1 * mscale * np.log(40) + 1) ** 2, rel=1e-12)


def test_difference_mscale_and_yarn_act_only_where_the_context_is_extended(ours):
  tensors = weights(SHORT)
  cfg, params = ours(SHORT, tensors)
  plain = theirs(SHORT | {'rope_scaling': None}, tensors)(TOKENS).logits_BLV
  longer = theirs(SHORT | {'max_position_embeddings': 4097}, tensors)(TOKENS).logits_BLV
  assert distance(forward(cfg, params)[1], plain) <= EXACT
  assert distance(longer, plain) > 0.01


def test_difference_rotary_pairs_are_interleaved(ours):
  tensors = weights(V3)
  assert 'rope_interleave' not in V3  # transformers' own key: the published config has none
  cfg, params = ours(V3, tensors)
  want, wrong = (theirs(V3, tensors, interleaved=i)(TOKENS).logits_BLV for i in (True, False))
  assert distance(forward(cfg, params)[1], want) <= EXACT
  assert distance(wrong, want) > 0.01


@pytest.mark.parametrize('choice', ['embedding_first', 'final_norm'])
def test_difference_prediction_sees_the_embedding_first_and_the_normed_state(ours, choice):
  tensors = weights(V3)
  cfg, params = ours(V3, tensors)
  want = theirs(V3, tensors)(TOKENS, AHEAD).mtp_BLV
  wrong = theirs(V3, tensors, **{choice: False})(TOKENS, AHEAD).mtp_BLV
  assert distance(forward(cfg, params)[2][0], want) <= EXACT
  assert distance(wrong, want) > 0.01


@pytest.mark.parametrize('width, original', [(64, 4096), (16, 4096), (64, 32), (8, 4), (4, 4096)])
def test_yarn_frequencies(width, original):
  """The published sizes, and ramps that are cut off at the first or last dimension."""
  scaling = YARN | {'original_max_position_embeddings': original}
  config = V3 | {'qk_rope_head_dim': width, 'rope_scaling': scaling}
  got = rope.frequencies(attention(config).rotary, width)
  np.testing.assert_allclose(got, reference.DeepSeek(config, {}).frequencies(), rtol=1e-12)


def quantized(tensor):
  """(float8 [R, C], scales [⌈R/128⌉, ⌈C/128⌉]): a block's largest weight becomes 448."""
  rows, columns = tensor.shape
  padded = torch.nn.functional.pad(tensor, (0, -columns % 128, 0, -rows % 128))
  blocks = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
  scale = blocks.abs().amax((1, 3)) / 448
  codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
  return codes.to(torch.float8_e4m3fn).contiguous(), scale


def dequantized(codes, scale):
  whole = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
  return (codes.float() * whole[: codes.shape[0], : codes.shape[1]]).bfloat16()


def test_fp8_blocks_load_as_bfloat16_and_give_the_logits_of_these(ours, load, tmp_path):
  """Stored as V3 is: projections in fp8, the rest in bfloat16, the selection bias in fp32."""
  wide = {'hidden_size': 160, 'intermediate_size': 300, 'moe_intermediate_size': 136}
  latents = {'q_lora_rank': 130, 'kv_lora_rank': 144, 'n_routed_experts': 8, 'topk_group': 3}
  config = V3 | wide | latents | FP8
  stored, want = {}, {}
  for name, tensor in weights(config).items():
    if '_proj' in name and 'eh_proj' not in name:
      stored[name], stored[f'{name}_scale_inv'] = codes, scale = quantized(tensor * 0.5)
      want[name] = dequantized(codes, scale)
    else:
      stored[name] = want[name] = tensor if name.endswith('bias') else tensor.bfloat16()
  folder = save(tmp_path / 'fp8', config, stored)
  tensors = source.open_source(folder).tensors
  for name, tensor in want.items():
    assert tensors.read(name).tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()
  plain = {key: value for key, value in config.items() if key != 'quantization_config'}
  cfg, params = load(folder)
  same, from_bfloat16 = ours(plain, want)
  assert same == cfg
  jax.tree.map(np.testing.assert_array_equal, params, from_bfloat16)
  cfg = dataclasses.replace(cfg, dtype='float32')  # activations, so that it can be compared
  found = theirs(config, want)(TOKENS, AHEAD)
  out, logits, ahead = forward(cfg, params)
  assert_experts(experts(out, cfg), found.ids_BLA)
  assert distance(logits, found.logits_BLV) <= EXACT
  assert distance(ahead[0], found.mtp_BLV) <= EXACT
