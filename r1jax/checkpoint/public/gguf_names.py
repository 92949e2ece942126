"""GGUF: its metadata as our config, its names and row order as those of the public tables.

Architectures llama (Llama 3, SmolLM2), qwen2 and qwen3. In `llama` files the rows of q and k of
each head are reordered for interleaved RoPE, (half pair) → (pair half); here they are put back.
Llama 2 and Mistral are `llama` too, but have vocabularies (sentencepiece, tekken) that
tokenizers/gguf.py refuses: convert their safetensors.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from r1jax.checkpoint.public.families import Public
from r1jax.checkpoint.public.gguf import Gguf
from r1jax.checkpoint.public.layout import Index
from r1jax.checkpoint.public.tensors import Tensor
from r1jax.core.errors import UserError, no_such
from r1jax.model.config import GQA, Dense, Layer, Llama3, ModelConfig, Rope
from r1jax.model.rope import slowed

ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
TOP = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
LAYER = {
  'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
FACTORS = 'rope_freqs.weight'  # Llama 3's scaling, as a divisor of each frequency


def public_name(name: str) -> str:
  """'blk.3.attn_q.weight' -> 'model.layers.3.self_attn.q_proj.weight'; unknown names stay."""
  found = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if found and found[2] in LAYER:
    return f'model.layers.{found[1]}.{LAYER[found[2]]}.{found[3]}'
  return TOP.get(name, name)


class Renamed:
  """A GGUF file under public names, rows in public order."""

  def __init__(self, gguf: Gguf, public: Public):
    self.gguf, self._attention = gguf, public.model.layers[0].attention
    self._names = {public_name(name): name for name in gguf.table if name != FACTORS}
    self._reordered = public.architecture == ARCHITECTURES['llama']
    self.table: Mapping[str, Tensor] = {new: gguf.table[old] for new, old in self._names.items()}

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """A slice of a tensor; of a reordered one all rows are read."""
    if not (self._reordered and re.search(r'\.[qk]_proj\.weight$', name)):
      return self.gguf.read(self._names[name], index)
    whole = self.gguf.read(self._names[name], (slice(None), *index[1:]))
    pairs = whole.reshape(-1, self._attention.head // 2, 2, whole.shape[-1])
    return pairs.swapaxes(1, 2).reshape(whole.shape)[index[:1]]


def parse(gguf: Gguf) -> Public:
  """The config that a file's metadata describes."""
  data, file = gguf.metadata, gguf.path
  kind = data.get('general.architecture')
  if kind not in ARCHITECTURES:
    raise UserError(f'{file}: {no_such("GGUF architecture", str(kind), ARCHITECTURES)}')

  def take(key: str, default: Any = None) -> Any:
    value = data.get(f'{kind}.{key}', default)
    if value is None:
      raise UserError(f'{file}: {kind}.{key} is missing; it is needed to build the model')
    if not isinstance(value, int | float):
      raise UserError(f'{file}: {kind}.{key} is {value!r}, expected one number for all layers')
    return value

  if data.get(f'{kind}.expert_count'):
    raise UserError(f'{file}: {kind} with experts is not supported in GGUF; use safetensors')
  if data.get(f'{kind}.attention.sliding_window'):
    raise UserError(f'{file}: sliding windows are not supported in GGUF; use safetensors')
  scaling = data.get(f'{kind}.rope.scaling.type', 'none')
  if scaling != 'none':
    raise UserError(f'{file}: rope scaling {scaling!r} is not supported in GGUF; use safetensors')
  embed, heads = take('embedding_length'), take('attention.head_count')
  head = take('attention.key_length', embed // heads)
  theta, eps = take('rope.freq_base', 10_000.0), take('attention.layer_norm_rms_epsilon')
  eps = float(str(np.float32(eps)))  # the number that was meant: 1e-5, not 9.9999997e-06
  attention = GQA(
    heads,
    take('attention.head_count_kv', heads),
    head,
    qk_norm=kind == 'qwen3',
    bias=kind == 'qwen2',
    rotary=Rope(float(theta), False, factors(gguf, float(theta), head)),
    eps=eps,
  )
  for key, value in (('rope.dimension_count', head), ('attention.value_length', head)):
    if take(key, value) != value:
      raise UserError(
        f'{file}: {kind}.{key} is {take(key)}, r1jax supports {value}, the head width'
      )
  layer = Layer(attention, Dense(take('feed_forward_length')), eps)
  vocab = gguf.table['token_embd.weight'].shape[0] if 'token_embd.weight' in gguf.table else 0
  model = ModelConfig(
    vocab=vocab or len(data.get('tokenizer.ggml.tokens', [])),
    embed=embed,
    layers=(layer,) * take('block_count'),
    tied='output.weight' not in gguf.table,
    eps=eps,
    std=0.02,
  )
  return Public(ARCHITECTURES[kind], model)


def factors(gguf: Gguf, theta: float, head: int) -> Llama3 | None:
  """Llama 3's scaling, recognized by the divisors that the file holds."""
  if FACTORS not in gguf.table:
    return None
  given = gguf.read(FACTORS)
  made = Llama3(factor=float(given.max()))
  omega = theta ** (-np.arange(0, head, 2) / head)
  if given.shape != omega.shape or not np.allclose(omega / slowed(omega, made), given, rtol=1e-4):
    raise UserError(f'{gguf.path}: {FACTORS} is not the scaling of Llama 3; use safetensors')
  return made
