"""Small random models of transformers, saved as they publish them."""

import pathlib

import jax.numpy as jnp
import pytest

from r1jax.checkpoint.public import source, weights

VOCAB = 96
COMMON = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'intermediate_size': 48,
  'attn_implementation': 'eager',
  'pad_token_id': 0,
}
DENSE = {'num_key_value_heads': 2, 'num_hidden_layers': 3}
DEEPSEEK = {
  'num_key_value_heads': 4,
  'num_hidden_layers': 4,
  'first_k_dense_replace': 1,
  'moe_intermediate_size': 16,
  'n_routed_experts': 16,
  'num_experts_per_tok': 4,
  'n_shared_experts': 2,
  'n_group': 4,
  'topk_group': 2,
  'routed_scaling_factor': 2.5,
  'q_lora_rank': 12,
  'kv_lora_rank': 24,
  'qk_nope_head_dim': 8,
  'qk_rope_head_dim': 16,
  'v_head_dim': 12,
  'num_nextn_predict_layers': 0,
}
# Many heads: with few, keys whose products are all negative tie at 0, and ties go either way.
INDEXED = {'index_topk': 6, 'index_n_heads': 24, 'index_head_dim': 20}
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 10_000.0,
  'factor': 40.0,
  'original_max_position_embeddings': 4096,
  'beta_fast': 32,
  'beta_slow': 1,
}
LATENT_YARN = {**YARN, 'mscale': 1.0, 'mscale_all_dim': 1.0}
V2 = {**DEEPSEEK, 'topk_method': 'greedy', 'norm_topk_prob': False}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 500.0,
  'factor': 8.0,
  'original_max_position_embeddings': 64,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
}
PLAIN = {'rope_type': 'default', 'rope_theta': 1000.0}
LONG = {'max_position_embeddings': 163_840}

# model type and options, by name
PUBLISHED = {
  'v3': ('deepseek_v3', DEEPSEEK | {'rope_parameters': LATENT_YARN, **LONG}),
  'v3 no query latent': ('deepseek_v3', DEEPSEEK | {'q_lora_rank': None}),
  'v3 halves': ('deepseek_v3', DEEPSEEK | {'rope_interleave': False}),
  'v3 raw gates': ('deepseek_v3', DEEPSEEK | {'norm_topk_prob': False, 'n_shared_experts': 1}),
  'v3.2': ('deepseek_v32', DEEPSEEK | INDEXED | {'rope_parameters': LATENT_YARN, **LONG}),
  'v2': (
    'deepseek_v2',
    V2 | {'topk_method': 'group_limited_greedy', 'routed_scaling_factor': 16.0},
  ),
  'v2 lite': (
    'deepseek_v2',
    V2 | {
      'q_lora_rank': None,
      'rope_parameters': YARN | {'mscale': 0.707, 'mscale_all_dim': 0.707},
      **LONG,
    },
  ),
  'llama': ('llama', DENSE | {'rope_parameters': PLAIN}),
  'llama 3.1': ('llama', DENSE | {'rope_parameters': LLAMA3, **LONG}),
  'llama tied head': ('llama', DENSE | {'tie_word_embeddings': True, 'head_dim': 12}),
  'mistral window': ('mistral', DENSE | {'sliding_window': 5}),
  'mistral': ('mistral', DENSE | {'sliding_window': None, 'head_dim': 16}),
  'qwen2': ('qwen2', DENSE | {'rope_parameters': PLAIN, 'tie_word_embeddings': True}),
  'qwen2 windows': (
    'qwen2',
    DENSE | {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 1},
  ),
  'qwen2 yarn': (
    'qwen2',
    DENSE | {'rope_parameters': YARN | {'factor': 4.0}, 'max_position_embeddings': 4096},
  ),
  'qwen3': ('qwen3', DENSE | {'head_dim': 12, 'tie_word_embeddings': True}),
  'qwen3 yarn': ('qwen3', DENSE | {'head_dim': 16, 'rope_parameters': YARN | {'factor': 2.0}}),
  'qwen3 moe': (
    'qwen3_moe',
    DENSE | {
      'head_dim': 16,
      'num_experts': 8,
      'num_experts_per_tok': 3,
      'moe_intermediate_size': 16,
      'mlp_only_layers': [1],
      'norm_topk_prob': True,
    },
  ),
}  # fmt: skip


def randomized(model, seed=0):
  """Weights large enough that every part of the model shows in the logits."""
  import torch  # not where only the converter is tested

  torch.manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      if p.dim() > 1:
        p.normal_(0, 0.15)
      else:
        p.uniform_(0.5, 1.5)
    for name, b in model.named_buffers():
      if name.endswith('e_score_correction_bias'):
        b.uniform_(0, 0.3)  # not negative: transformers closes groups with 0, we with −∞
  return model.eval()


def publish(folder: pathlib.Path, name: str, seed: int = 0, dtype: str = 'float32', **more):
  """(model, folder) of one of PUBLISHED, saved by transformers."""
  import torch
  import transformers

  kind, options = PUBLISHED[name]
  config = transformers.AutoConfig.for_model(kind, **{**COMMON, **options, **more})
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  model = randomized(model, seed).to(getattr(torch, dtype))
  model.save_pretrained(folder)
  return model, folder


@pytest.fixture(name='publish')
def _publish(tmp_path):
  return lambda name, **more: publish(tmp_path / 'published', name, **more)


def load(folder):
  """(config, parameters) of a public folder."""
  opened = source.open_source(folder)
  return opened.public.model, weights.tree(opened.leaves, lambda p: jnp.asarray(opened.read(p)))


@pytest.fixture(name='load')
def _load():
  return load


@pytest.fixture(params=PUBLISHED)
def published(request):
  """The name of each published model in turn."""
  return request.param


VARIANTS = ('v3 no query latent', 'v3 halves', 'v3 raw gates', 'v2 lite')


@pytest.fixture(
  params=[pytest.param(p, marks=pytest.mark.slow) if p in VARIANTS else p for p in PUBLISHED]
)
def written(request):
  """The same where texts are written; those that differ in a detail of another one are slow."""
  return request.param
