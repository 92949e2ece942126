"""ModelConfig to a public config.json: the way back from families.py.

The architecture follows from the layers; what no public architecture can say is an error before
anything is written.
"""

import dataclasses
from typing import Any

from r1jax.checkpoint.public import families, rotary
from r1jax.checkpoint.public.families import Public
from r1jax.checkpoint.public.options import Options
from r1jax.core import config
from r1jax.core.errors import UserError, no_such
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, TopK, Window

OTHER = 'export another architecture, or a model whose layers one of them has'


def architecture(cfg: ModelConfig) -> str:
  """The public architecture that has these layers."""
  experts = next((l.mlp for l in cfg.layers if isinstance(l.mlp, MoE)), None)
  match cfg.layers[0].attention, experts:
    case MLA(pattern=TopK()), _:
      return 'DeepseekV32ForCausalLM'
    case MLA(), MoE(score='softmax'):
      return 'DeepseekV2ForCausalLM'
    case MLA(), _:
      return 'DeepseekV3ForCausalLM'
    case GQA(qk_norm=True), MoE():
      return 'Qwen3MoeForCausalLM'
    case GQA(qk_norm=True), None:
      return 'Qwen3ForCausalLM'
    case GQA(bias=True), None:
      return 'Qwen2ForCausalLM'
  if any(isinstance(getattr(l.attention, 'pattern', None), Window) for l in cfg.layers):
    return 'MistralForCausalLM'
  return 'LlamaForCausalLM'


def describe(cfg: ModelConfig, length: int, dtype: str, name: str | None = None) -> dict[str, Any]:
  """config.json of a model; name: the architecture to write it as, when several could hold it."""
  kind = name or architecture(cfg)
  check(cfg, kind)
  data = common(cfg, length, dtype) | {'architectures': [kind], 'model_type': MODEL_TYPES[kind]}
  data |= latent(cfg, kind) if kind.startswith('Deepseek') else grouped(cfg, kind)
  back = families.parse(Options(dict(data), 'config.json'))
  wanted, said = reduced(cfg), reduced(back.model)
  if said != wanted:
    raise UserError(
      f'{kind} cannot say all of this model: {config.first_difference(wanted, said)}; only what '
      'public architectures hold can be exported'
    )
  return data


def check(cfg: ModelConfig, kind: str) -> None:
  """The architecture is known and has this attention, and experts where it needs them."""
  if kind not in MODEL_TYPES:
    raise UserError(no_such('architecture', kind, MODEL_TYPES))
  family = MLA if kind.startswith('Deepseek') else GQA
  if not all(isinstance(l.attention, family) for l in cfg.layers):
    raise UserError(f'{kind} has {family.__name__} in every layer; this model has not: {OTHER}')
  if (family is MLA or kind == 'Qwen3MoeForCausalLM') and not any(
    isinstance(l.mlp, MoE) for l in cfg.layers
  ):
    raise UserError(f'{kind} has experts; a model without any cannot be one: {OTHER}')


MODEL_TYPES = {
  'DeepseekV3ForCausalLM': 'deepseek_v3',
  'DeepseekV32ForCausalLM': 'deepseek_v32',
  'DeepseekV2ForCausalLM': 'deepseek_v2',
  'LlamaForCausalLM': 'llama',
  'MistralForCausalLM': 'mistral',
  'Qwen2ForCausalLM': 'qwen2',
  'Qwen3ForCausalLM': 'qwen3',
  'Qwen3MoeForCausalLM': 'qwen3_moe',
}


def public(cfg: ModelConfig, name: str | None = None) -> Public:
  """The same as the loader would have it, for the tables of names."""
  return Public(name or architecture(cfg), cfg)


def common(cfg: ModelConfig, length: int, dtype: str) -> dict[str, Any]:
  """What every architecture has."""
  layer = cfg.layers[0]
  dense = [l.mlp.ffw for l in cfg.layers if isinstance(l.mlp, Dense)]
  return {
    'vocab_size': cfg.vocab,
    'hidden_size': cfg.embed,
    'num_hidden_layers': len(cfg.layers),
    'num_attention_heads': layer.attention.heads,
    'intermediate_size': dense[0] if dense else layer.mlp.ffw,
    'hidden_act': 'silu',
    'rms_norm_eps': cfg.eps,
    'initializer_range': cfg.std,
    'tie_word_embeddings': cfg.tied,
    'max_position_embeddings': length,
    'torch_dtype': dtype,
    'use_cache': True,
    'attention_dropout': 0.0,
  }


def latent(cfg: ModelConfig, kind: str) -> dict[str, Any]:
  """DeepSeek's own keys."""
  a = cfg.layers[0].attention
  m = next(l.mlp for l in cfg.layers if isinstance(l.mlp, MoE))
  method = 'noaux_tc'
  if kind == 'DeepseekV2ForCausalLM':
    method = 'group_limited_greedy' if m.groups > 1 else 'greedy'
  indexed = indexing(cfg) if kind == 'DeepseekV32ForCausalLM' else {}
  return (
    rotary.write(a.rotary, latent=True)
    | indexed
    | {
      'attention_bias': False,
      'num_key_value_heads': a.heads,
      'qk_nope_head_dim': a.nope,
      'qk_rope_head_dim': a.rope,
      'v_head_dim': a.value,
      'kv_lora_rank': a.kv_latent,
      'q_lora_rank': a.q_latent,
      'moe_intermediate_size': m.ffw,
      'n_routed_experts': m.experts,
      'num_experts_per_tok': m.active,
      'n_shared_experts': m.shared,
      'n_group': m.groups,
      'topk_group': m.active_groups,
      'norm_topk_prob': m.gates == 'normalized',
      'routed_scaling_factor': m.scale,
      'scoring_func': m.score,
      'topk_method': method,
      'first_k_dense_replace': sum(isinstance(l.mlp, Dense) for l in cfg.layers),
      'moe_layer_freq': 1,
      'num_nextn_predict_layers': len(cfg.mtp),
    }
  )


def indexing(cfg: ModelConfig) -> dict[str, Any]:
  """Keys of V3.2's indexers; their rotated width is the attention's."""
  pattern = cfg.layers[0].attention.pattern
  if not isinstance(pattern, TopK):
    raise UserError(f'DeepseekV32ForCausalLM has TopK in every layer; this model has not: {OTHER}')
  return {
    'index_topk': pattern.keys,
    'index_n_heads': pattern.indexer.heads,
    'index_head_dim': pattern.indexer.head,
  }


def grouped(cfg: ModelConfig, kind: str) -> dict[str, Any]:
  """Keys of Llama, Mistral and Qwen."""
  a = cfg.layers[0].attention
  windows = [getattr(l.attention.pattern, 'window', None) for l in cfg.layers]
  window = max((w for w in windows if w), default=None)
  data = rotary.write(a.rotary, latent=False) | {
    'num_key_value_heads': a.kv_heads,
    'head_dim': a.head,
  }
  if kind == 'MistralForCausalLM':
    data |= {'sliding_window': window}
  if kind.startswith('Qwen'):
    kinds = ['sliding_attention' if w else 'full_attention' for w in windows]
    data |= {'use_sliding_window': bool(window), 'sliding_window': window, 'layer_types': kinds}
  if kind == 'LlamaForCausalLM':
    data |= {'attention_bias': False, 'mlp_bias': False}
  if kind.startswith('Qwen3'):
    data |= {'attention_bias': False}
  if kind == 'Qwen3MoeForCausalLM':
    m = next(l.mlp for l in cfg.layers if isinstance(l.mlp, MoE))
    data |= {
      'moe_intermediate_size': m.ffw,
      'num_experts': m.experts,
      'num_experts_per_tok': m.active,
      'norm_topk_prob': m.gates == 'normalized',
      'decoder_sparse_step': 1,
      'mlp_only_layers': [i for i, l in enumerate(cfg.layers) if isinstance(l.mlp, Dense)],
    }
  return data


def reduced(cfg: ModelConfig) -> ModelConfig:
  """Without what is no part of the function: initial spread, remat, dtype of activations."""

  def one(layer: Layer) -> Layer:
    attention = dataclasses.replace(layer.attention, std=0.0)
    return dataclasses.replace(
      layer, attention=attention, mlp=dataclasses.replace(layer.mlp, std=0.0)
    )

  layers, mtp = tuple(map(one, cfg.layers)), tuple(map(one, cfg.mtp))
  return dataclasses.replace(
    cfg, layers=layers, mtp=mtp, remat='none', std=0.0, dtype='float32',
    mtp_input=cfg.mtp_input if cfg.mtp else 'normed',
  )  # fmt: skip
