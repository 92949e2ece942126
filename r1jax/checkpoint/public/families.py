"""Public architectures: config.json to ModelConfig and back.

DeepSeek-V3 and R1, V3.2, V2, Llama 3, Mistral, Qwen 2 (2.5), Qwen 3 and Qwen 3 MoE. What is read
from an architecture's config.json is in one function here, and `describe` is the way back. Where
public implementations differ, DeepSeek's reference inference code is followed (model/router.py,
model/rope.py).
"""

import dataclasses
from typing import Any

from r1jax.checkpoint.public import rotary
from r1jax.checkpoint.public.options import Options, choose
from r1jax.core.errors import UserError
from r1jax.model.config import GQA, MLA, Dense, Full, Indexer, Layer, ModelConfig, MoE, TopK, Window

# The architectures whose checkpoints hold the router's selection bias.
ROUTER_BIAS = ('DeepseekV3ForCausalLM', 'DeepseekV32ForCausalLM')


@dataclasses.dataclass(frozen=True)
class Public:
  """A model as published: its architecture, ours, and how its weights are quantized."""

  architecture: str
  model: ModelConfig
  fp8_block: tuple[int, int] | None = None

  @property
  def router_bias(self) -> bool:
    """Whether the router's selection bias is among the tensors."""
    return self.architecture in ROUTER_BIAS


def parse(options: Options) -> Public:
  """What a config.json describes; anything unknown or unsupported is an error of one line."""
  architecture = choose(options, READERS)
  try:
    return _parse(options, architecture)
  except (ValueError, ZeroDivisionError) as error:  # numbers that do not fit each other
    raise UserError(f'{options.file}: {error}; fetch it again') from None


def _parse(options: Options, architecture: str) -> Public:
  options.must('hidden_act', 'silu')
  options.must('is_encoder_decoder', False)
  options.must('add_cross_attention', False)
  options.must('rope_interleave', *((True, False) if 'Deepseek' in architecture else (False,)))
  layers, mtp = READERS[architecture](options)
  tied = options.take('tie_word_embeddings', bool, False)
  model = ModelConfig(
    vocab=options.take('vocab_size'),
    embed=options.take('hidden_size'),
    layers=layers,
    mtp=mtp,
    tied=tied,
    eps=options.take('rms_norm_eps', float, 1e-6),
    std=options.take('initializer_range', float, 0.02),
    dtype=activations(options),
  )
  block = fp8(options)
  options.finish()
  return Public(architecture, model, block)


def activations(options: Options) -> str:
  """bfloat16 models compute in it; fp16 ones in fp32, whose range and precision hold theirs."""
  name = options.take('torch_dtype', str, 'float32')
  name = options.take('dtype', str, name)  # its name since transformers 5
  kinds = {'bfloat16': 'bfloat16', 'float16': 'float32', 'float32': 'float32'}
  if name not in kinds:
    raise UserError(f'{options.file}: torch_dtype is {name!r}; r1jax supports {", ".join(kinds)}')
  return kinds[name]


def fp8(options: Options) -> tuple[int, int] | None:
  """The block of DeepSeek's fp8 weights, None without; other quantizations are not read."""
  given = options.take('quantization_config', dict, None)
  if given is None:
    return None
  block = given.get('weight_block_size')
  sizes = [type(size) is int and size > 0 for size in block] if isinstance(block, list) else []
  if given.get('quant_method') != 'fp8' or sizes != [True, True]:
    raise UserError(
      f'{options.file}: quantization {given.get("quant_method")!r} is not supported; r1jax reads '
      "unquantized weights, DeepSeek's block-scaled fp8 (weight_block_size) and GGUF"
    )
  return tuple(block)


def deepseek(options: Options, moe: dict[str, Any]) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
  """MLA; dense layers, then experts, which only the generations tell apart; prediction modules."""
  options.must('attention_bias', False)
  options.must('mlp_bias', False)
  options.must('moe_layer_freq', 1)
  options.take('num_key_value_heads', int, None)  # as many as heads: the latent is shared
  options.take('head_dim', int, None)  # transformers writes the rotated width there
  options.take('qk_head_dim', int, None)
  attention = MLA(
    heads=options.take('num_attention_heads'),
    nope=options.take('qk_nope_head_dim'),
    rope=options.take('qk_rope_head_dim'),
    value=options.take('v_head_dim'),
    kv_latent=options.take('kv_lora_rank'),
    q_latent=options.take('q_lora_rank', int, None),
    rotary=rotary.read(options, options.take('rope_interleave', bool, True), latent=True),
  )
  eps, ffw = options.take('rms_norm_eps', float, 1e-6), options.take('intermediate_size')
  experts = MoE(
    ffw=options.take('moe_intermediate_size'),
    experts=options.take('n_routed_experts'),
    active=options.take('num_experts_per_tok'),
    shared=options.take('n_shared_experts', int, 0, least=0),
    **moe,
  )
  first = options.take('first_k_dense_replace', int, 0, least=0)
  count = options.take('num_hidden_layers')
  if first > count:
    raise UserError(
      f'{options.file}: first_k_dense_replace is {first} of {count} layers; fetch it again'
    )
  sparse = Layer(attention, experts, eps)
  layers = (Layer(attention, Dense(ffw), eps),) * first + (sparse,) * (count - first)
  return layers, (sparse,) * options.take('num_nextn_predict_layers', int, 0, least=0)


def deepseek_v3(options: Options) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
  """V3 and R1: sigmoid scores, selection bias, normalized gates."""
  options.must('topk_method', 'noaux_tc')
  options.must('scoring_func', 'sigmoid')
  raw = not options.take('norm_topk_prob', bool, True)
  moe = {
    'groups': options.take('n_group'),
    'active_groups': options.take('topk_group'),
    'gates': 'raw' if raw else 'normalized',
    'scale': options.take('routed_scaling_factor', float),
  }
  return deepseek(options, moe)


def deepseek_v32(options: Options) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
  """V3.2: V3 whose layers all have an indexer."""
  options.must('layer_types', ['indexed_attention'] * options.take('num_hidden_layers'))
  first = options.take('first_k_dense_replace', int, 0, least=0)
  more = max(options.take('num_hidden_layers') - first, 0)
  options.must('mlp_layer_types', ['dense'] * first + ['sparse'] * more)
  indexer = Indexer(
    heads=options.take('index_n_heads'),
    head=options.take('index_head_dim'),
    rope=options.take('qk_rope_head_dim'),
  )
  pattern = TopK(options.take('index_topk'), indexer)
  make = lambda l: dataclasses.replace(
    l, attention=dataclasses.replace(l.attention, pattern=pattern)
  )
  return tuple(tuple(map(make, layers)) for layers in deepseek_v3(options))


def deepseek_v2(options: Options) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
  """V2: softmax scores, raw gates; groups count by their best expert, or there are none."""
  options.must('scoring_func', 'softmax')
  options.must('norm_topk_prob', False)
  method = options.take('topk_method', str, 'greedy')
  options.must('topk_method', 'greedy', 'group_limited_greedy')
  groups, active = options.take('n_group', int, 1), options.take('topk_group', int, 1)
  scale = options.take('routed_scaling_factor', float, 1.0)
  moe = {'score': 'softmax', 'group_score': 'best', 'gates': 'raw', 'scale': scale}
  if method == 'group_limited_greedy':
    moe |= {'groups': groups, 'active_groups': active}
  return deepseek(options, moe)


def grouped(options: Options, *, bias: bool = False, qk_norm: bool = False) -> GQA:
  """The attention that the dense families share."""
  heads = options.take('num_attention_heads')
  return GQA(
    heads,
    options.take('num_key_value_heads', int, heads),
    options.take('head_dim', int, options.take('hidden_size') // heads),
    qk_norm=qk_norm,
    bias=bias,
    rotary=rotary.read(options, interleaved=False, latent=False),
    eps=options.take('rms_norm_eps', float, 1e-6),
  )


def dense(
  options: Options, attention: GQA, windows: list[int | None]
) -> tuple[tuple[Layer, ...], tuple]:
  """SwiGLU layers; windows: of each layer, None where all is seen."""
  eps, mlp = options.take('rms_norm_eps', float, 1e-6), Dense(options.take('intermediate_size'))
  pattern = lambda w: Full() if w is None else Window(w)
  make = lambda w: Layer(dataclasses.replace(attention, pattern=pattern(w)), mlp, eps)
  return tuple(make(w) for w in windows), ()


def llama(options: Options) -> tuple[tuple[Layer, ...], tuple]:
  """Llama, SmolLM2, the Llama students of R1."""
  options.must('attention_bias', False)
  options.must('mlp_bias', False)
  return dense(options, grouped(options), [None] * options.take('num_hidden_layers'))


def mistral(options: Options) -> tuple[tuple[Layer, ...], tuple]:
  """Mistral: every layer under one window, or none."""
  return dense(options, grouped(options), [window(options)] * options.take('num_hidden_layers'))


def window(options: Options) -> int | None:
  """Null is none; absence is what transformers takes it for."""
  absent = None if 'sliding_window' in options.data else 4096
  return options.take('sliding_window', int, absent, least=0)  # 0 where none is used


def qwen2(options: Options) -> tuple[tuple[Layer, ...], tuple]:
  """Qwen 2 and 2.5, the Qwen students of R1: biases on q, k and v."""
  options.must('use_mrope', False)
  return dense(options, grouped(options, bias=True), qwen_windows(options))


def qwen3(options: Options) -> tuple[tuple[Layer, ...], tuple]:
  """Qwen 3: norms on queries and keys."""
  options.must('attention_bias', False)
  return dense(options, grouped(options, qk_norm=True), qwen_windows(options))


def qwen_windows(options: Options) -> list[int | None]:
  """The last layers may see a window: layer_types says which, or max_window_layers."""
  count = options.take('num_hidden_layers')
  given, first = window(options), options.take('max_window_layers', int, 28, least=0)
  width = given if options.take('use_sliding_window', bool, False) else None
  kinds = ['sliding_attention' if width and i >= first else 'full_attention' for i in range(count)]
  kinds = options.take('layer_types', list, kinds)
  if len(kinds) != count or any(k not in ('full_attention', 'sliding_attention') for k in kinds):
    raise UserError(
      f'{options.file}: layer_types must name {count} full_ or sliding_attention; fetch it again'
    )
  return [width if kind == 'sliding_attention' else None for kind in kinds]


def qwen3_moe(options: Options) -> tuple[tuple[Layer, ...], tuple]:
  """Qwen 3 with experts: softmax scores, gates normalized as published, no shared expert."""
  options.must('attention_bias', False)
  options.must('decoder_sparse_step', 1)
  options.must('use_sliding_window', False)
  normed = options.take('norm_topk_prob', bool, False)
  count = 'num_local_experts' if 'num_local_experts' in options.data else 'num_experts'
  plain = options.take('mlp_only_layers', list, [])
  layers, _ = dense(options, grouped(options, qk_norm=True), qwen_windows(options))
  if any(i not in range(len(layers)) for i in plain):
    raise UserError(
      f'{options.file}: mlp_only_layers is {plain}, expected some of 0 to {len(layers) - 1}; fetch '
      'it again'
    )
  experts = MoE(
    ffw=options.take('moe_intermediate_size'),
    experts=options.take(count),
    active=options.take('num_experts_per_tok'),
    shared=0,
    score='softmax',
    gates='normalized' if normed else 'raw',
  )
  return tuple(
    l if i in plain else dataclasses.replace(l, mlp=experts) for i, l in enumerate(layers)
  ), ()


READERS = {
  'DeepseekV3ForCausalLM': deepseek_v3,
  'DeepseekV32ForCausalLM': deepseek_v32,
  'DeepseekV2ForCausalLM': deepseek_v2,
  'LlamaForCausalLM': llama,
  'MistralForCausalLM': mistral,
  'Qwen2ForCausalLM': qwen2,
  'Qwen3ForCausalLM': qwen3,
  'Qwen3MoeForCausalLM': qwen3_moe,
}
