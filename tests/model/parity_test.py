"""The same weights in transformers and here give the same logits: DeepSeek-V3, Qwen 2, Qwen 3.

Weights are mapped by hand. torch and transformers come with the extra `dev`; without them this
fails, it does not skip.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange

from r1jax.core import tree
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, Rope, Yarn, runs
from r1jax.model.transformer import Inputs, Transformer

VOCAB, D, T, EPS = 40, 32, 20, 1e-6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, T))
COMMON = {
  'vocab_size': VOCAB,
  'hidden_size': D,
  'rms_norm_eps': EPS,
  'num_attention_heads': 4,
  'attn_implementation': 'eager',
}
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 10_000.0,
  'factor': 40.0,
  'original_max_position_embeddings': 4096,
  'beta_fast': 32,
  'beta_slow': 1,
  'mscale': 1.0,
  'mscale_all_dim': 1.0,
}


def randomized(model):
  """Weights large enough that every part of the model shows in the logits."""
  torch.manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      if p.dim() > 1:
        p.normal_(0, 0.15)
      else:
        p.uniform_(0.5, 1.5)
    for name, b in model.named_buffers():
      if name.endswith('e_score_correction_bias'):
        b.uniform_(0, 0.3)  # not negative: some versions close groups with 0, we with −∞
  return model.eval()


def weights(model):
  """Arrays by public name."""
  return {name: jnp.asarray(x.detach().numpy()) for name, x in model.state_dict().items()}


def ours(cfg, p, layer):
  """Parameters of our model; layer(prefix, spec) maps those of one layer."""
  made = {
    f'run{i}': {'block0': jax.tree.map(lambda x: x[None], layer(f'model.layers.{i}.', spec))}
    for i, spec in enumerate(cfg.layers)
  }
  table = tuple((len(run.period), run.repeats) for run in runs(cfg.layers))
  params = tree.restack(made, ((1, 1),) * len(cfg.layers), table)
  params |= {'embedding': p['model.embed_tokens.weight'], 'final_scale': p['model.norm.weight']}
  return params if cfg.tied else {**params, 'head': p['lm_head.weight'].T}


def feed_forward(p, at):
  return {name: p[f'{at}{name}_proj.weight'].T for name in ('gate', 'up', 'down')}


def norms(p, at):
  return {
    'attention_scale': p[f'{at}input_layernorm.weight'],
    'mlp_scale': p[f'{at}post_attention_layernorm.weight'],
  }


def latent(p, at, c):
  """MLA, from its public names."""
  up = rearrange(p[f'{at}kv_b_proj.weight'], '(N H) R -> R N H', N=c.heads)
  query = {'q_up': 'q_proj'}
  out = {}
  if c.q_latent:
    query = {'q_up': 'q_b_proj'}
    out = {'q_down': p[f'{at}q_a_proj.weight'].T, 'q_scale': p[f'{at}q_a_layernorm.weight']}
  return out | {
    'q_up': rearrange(p[f'{at}{query["q_up"]}.weight'], '(N H) D -> D N H', N=c.heads),
    'kv_down': p[f'{at}kv_a_proj_with_mqa.weight'].T,
    'kv_scale': p[f'{at}kv_a_layernorm.weight'],
    'k_up': up[..., : c.nope],
    'v_up': up[..., c.nope :],
    'out': rearrange(p[f'{at}o_proj.weight'], 'D (N V) -> N V D', N=c.heads),
  }


def experts(p, at):
  """Router, routed and shared experts."""
  gate_up = rearrange(p[f'{at}experts.gate_up_proj'], 'E (two F) D -> two E D F', two=2)
  return {
    'router': {
      'weight': p[f'{at}gate.weight'].T,
      'bias': p[f'{at}gate.e_score_correction_bias'],
    },
    'gate': gate_up[0],
    'up': gate_up[1],
    'down': rearrange(p[f'{at}experts.down_proj'], 'E D F -> E F D'),
    'shared': feed_forward(p, f'{at}shared_experts.'),
  }


def grouped(p, at, c):
  """GQA; biases and norms where the config has them."""
  out = {'out': rearrange(p[f'{at}o_proj.weight'], 'D (N H) -> N H D', N=c.heads)}
  for n in 'qkv':
    out[n] = rearrange(p[f'{at}{n}_proj.weight'], '(N H) D -> D N H', H=c.head)
    if c.bias:
      out[f'{n}_bias'] = rearrange(p[f'{at}{n}_proj.bias'], '(N H) -> N H', H=c.head)
  if c.qk_norm:
    out |= {f'{n}_scale': p[f'{at}{n}_norm.weight'] for n in 'qk'}
  return out


def assert_same_logits(model, cfg, layer):
  """Within 2e-5 of the largest logit, at every position."""
  p = weights(model)
  params = ours(cfg, p, lambda at, spec: layer(p, at, spec))
  with torch.no_grad():
    want = model(torch.tensor(TOKENS)).logits.numpy()
  positions = jnp.broadcast_to(jnp.arange(T), TOKENS.shape)
  inputs = Inputs(jnp.asarray(TOKENS), positions, jnp.ones_like(positions))
  x_BLD = jax.jit(Transformer(cfg).apply)({'params': params}, inputs).x_BLD
  got = x_BLD @ transformer.head(params, cfg)
  assert np.abs(want).max() > 1
  assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize(
  'q_latent, rope, theirs',
  [
    (12, Rope(scaling=Yarn()), {'rope_parameters': YARN, 'max_position_embeddings': 163_840}),
    (None, Rope(theta=500.0), {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}),
    (12, Rope(interleaved=False), {'rope_interleave': False}),
  ],
  ids=['yarn', 'no query latent', 'halves'],
)
def test_deepseek_v3(q_latent, rope, theirs):
  attention = MLA(4, 8, 16, 12, kv_latent=24, q_latent=q_latent, rotary=rope)
  moe = MoE(16, experts=16, active=4, groups=4, active_groups=2, scale=2.5)
  dense, sparse = Layer(attention, Dense(48)), Layer(attention, moe)
  cfg = ModelConfig(VOCAB, D, (dense, dense, sparse, sparse), remat='none')
  config = transformers.DeepseekV3Config(
    **COMMON,
    **theirs,
    num_key_value_heads=4,
    num_hidden_layers=4,
    first_k_dense_replace=2,
    num_nextn_predict_layers=0,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_shared_experts=1,
    n_group=4,
    topk_group=2,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    q_lora_rank=q_latent,
    kv_lora_rank=24,
    qk_nope_head_dim=8,
    qk_rope_head_dim=16,
    v_head_dim=12,
  )

  def layer(p, at, spec):
    mlp = experts if isinstance(spec.mlp, MoE) else feed_forward
    attention = latent(p, f'{at}self_attn.', spec.attention)
    return {**norms(p, at), 'attention': attention, 'mlp': mlp(p, f'{at}mlp.')}

  assert_same_logits(randomized(transformers.DeepseekV3ForCausalLM(config)), cfg, layer)


@pytest.mark.parametrize('family', ['qwen2', 'qwen3'])
def test_qwen(family):
  three = family == 'qwen3'
  rope = Rope(theta=1000.0, interleaved=False)
  attention = GQA(4, 2, 12 if three else 8, qk_norm=three, bias=not three, rotary=rope)
  cfg = ModelConfig(VOCAB, D, (Layer(attention, Dense(48)),) * 3, tied=three, remat='none')
  config = transformers.AutoConfig.for_model(
    family,
    **COMMON,
    **({'head_dim': 12} if three else {}),
    num_key_value_heads=2,
    num_hidden_layers=3,
    intermediate_size=48,
    tie_word_embeddings=three,
    rope_parameters={'rope_type': 'default', 'rope_theta': 1000.0},
  )

  def layer(p, at, spec):
    attention = grouped(p, f'{at}self_attn.', spec.attention)
    return {**norms(p, at), 'attention': attention, 'mlp': feed_forward(p, f'{at}mlp.')}

  model = transformers.AutoModelForCausalLM.from_config(config)
  assert_same_logits(randomized(model), cfg, layer)
