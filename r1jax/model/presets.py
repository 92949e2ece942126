"""Named models: `tiny_*` train on two CPU cores, the others are public ones.

R1 and its students: `deepseek_v3` (arXiv 2412.19437), `deepseek_v32` (2512.02556), `qwen_1b5` …
`qwen_32b`, `llama_8b`, `llama_70b` (2501.12948), `deepseek_v2_lite` (2405.04434), `smollm2_135m`.
Each equals what r1jax.bin.convert makes of its config.json, initial spread and dtype apart; the
tests hold qwen_7b, qwen_14b, qwen_32b and llama_70b by their numbers of parameters alone.
"""

import dataclasses

from r1jax.model.config import (
  GQA,
  MLA,
  Dense,
  Layer,
  Llama3,
  ModelConfig,
  MoE,
  Rope,
  TopK,
  Yarn,
  with_attention,
)

TINY_VOCAB = 265  # bytes and special tokens (tokenizers/byte.py)


def tiny_r1(layers: int = 4) -> ModelConfig:
  """Latent attention; a dense layer, then 8 experts top-2 and a shared one; 1.4M parameters.

  One prediction module beside, of 0.4M.
  """
  mla = MLA(heads=4, nope=16, rope=16, value=32, kv_latent=64, q_latent=64, std=0.05)
  moe = MoE(ffw=96, experts=8, active=2, shared=1, groups=4, active_groups=2, scale=1.0, std=0.05)
  sparse = Layer(mla, moe)
  return ModelConfig(
    vocab=TINY_VOCAB,
    embed=128,
    layers=(Layer(mla, Dense(ffw=256, std=0.05)),) + (sparse,) * (layers - 1),
    mtp=(sparse,),
    std=0.05,
    remat='none',
  )


def tiny_dense(embed: int = 128, layers: int = 4) -> ModelConfig:
  """Grouped-query attention and SwiGLU, in the manner of Llama and Qwen."""
  layer = Layer(GQA(heads=4, kv_heads=2, head=32, std=0.05), Dense(ffw=384, std=0.05))
  return ModelConfig(TINY_VOCAB, embed, (layer,) * layers, tied=True, std=0.05, remat='none')


def tiny_moe16(active: int = 2) -> ModelConfig:
  """16 experts, top-2 or top-4."""
  mla = MLA(heads=4, nope=32, rope=16, value=32, kv_latent=64, std=0.05)
  moe = MoE(ffw=64, experts=16, active=active, groups=4, active_groups=2, std=0.05)
  return ModelConfig(TINY_VOCAB, 128, (Layer(mla, moe),) * 4, std=0.05, remat='none')


def deepseek_v3() -> ModelConfig:
  """671B parameters, 37B active: 61 layers (3 dense), 256 experts top-8 in 4 of 8 groups."""
  mla = MLA(
    128, nope=128, rope=64, value=128, kv_latent=512, q_latent=1536, rotary=Rope(scaling=Yarn())
  )
  moe = MoE(2048, experts=256, active=8, shared=1, groups=8, active_groups=4, scale=2.5)
  return ModelConfig(
    vocab=129_280,
    embed=7168,
    layers=(Layer(mla, Dense(18_432)),) * 3 + (Layer(mla, moe),) * 58,
    mtp=(Layer(mla, moe),),
    dtype='bfloat16',
  )


def deepseek_v32() -> ModelConfig:
  """V3 whose tokens attend to the 2,048 that a lightning indexer chooses (arXiv 2512.02556)."""
  return with_attention(deepseek_v3(), lambda a: dataclasses.replace(a, pattern=TopK()))


def deepseek_v2_lite() -> ModelConfig:
  """16B parameters, 2.4B active: 27 layers (1 dense), 64 experts top-6 without groups."""
  yarn = Yarn(mscale=0.707)
  mla = MLA(16, nope=128, rope=64, value=128, kv_latent=512, rotary=Rope(scaling=yarn))
  moe = MoE(1408, experts=64, active=6, shared=2, score='softmax', group_score='best', gates='raw')
  return ModelConfig(
    vocab=102_400,
    embed=2048,
    layers=(Layer(mla, Dense(10_944)),) + (Layer(mla, moe),) * 26,
    dtype='bfloat16',
  )


def smollm2_135m() -> ModelConfig:
  """SmolLM2-135M: Llama's layers, 30 of width 576."""
  attention = GQA(9, 3, 64, rotary=Rope(100_000.0, False), eps=1e-5)
  return dense(49_152, 576, 30, attention, 1536, eps=1e-5, tied=True, dtype='float32')


def qwen_1b5() -> ModelConfig:
  """R1-Distill-Qwen-1.5B."""
  return qwen(151_936, 1536, 28, heads=12, kv_heads=2, ffw=8960, theta=10_000.0)


def qwen_7b() -> ModelConfig:
  """R1-Distill-Qwen-7B."""
  return qwen(152_064, 3584, 28, heads=28, kv_heads=4, ffw=18_944, theta=10_000.0)


def qwen_14b() -> ModelConfig:
  """R1-Distill-Qwen-14B."""
  return qwen(152_064, 5120, 48, heads=40, kv_heads=8, ffw=13_824, eps=1e-5)


def qwen_32b() -> ModelConfig:
  """R1-Distill-Qwen-32B."""
  return qwen(152_064, 5120, 64, heads=40, kv_heads=8, ffw=27_648, eps=1e-5)


def llama_8b() -> ModelConfig:
  """R1-Distill-Llama-8B: Llama 3.1."""
  return llama(4096, 32, heads=32, ffw=14_336)


def llama_70b() -> ModelConfig:
  """R1-Distill-Llama-70B: Llama 3.3."""
  return llama(8192, 80, heads=64, ffw=28_672)


def qwen(
  vocab: int,
  embed: int,
  layers: int,
  heads: int,
  kv_heads: int,
  ffw: int,
  theta: float = 1e6,
  eps: float = 1e-6,
) -> ModelConfig:
  """Qwen 2.5: heads of 128, biases on q, k and v."""
  attention = GQA(heads, kv_heads, 128, bias=True, rotary=Rope(theta, False), eps=eps)
  return dense(vocab, embed, layers, attention, ffw, eps)


def llama(embed: int, layers: int, heads: int, ffw: int) -> ModelConfig:
  """Llama 3.1: heads of 128, eight of keys and values."""
  attention = GQA(heads, 8, 128, rotary=Rope(500_000.0, False, Llama3()), eps=1e-5)
  return dense(128_256, embed, layers, attention, ffw, eps=1e-5)


def dense(
  vocab: int,
  embed: int,
  layers: int,
  attention: GQA,
  ffw: int,
  eps: float,
  tied: bool = False,
  dtype: str = 'bfloat16',
) -> ModelConfig:
  """Equal layers of attention and SwiGLU."""
  stack = (Layer(attention, Dense(ffw, std=0.02), eps),) * layers
  return ModelConfig(vocab, embed, stack, tied=tied, eps=eps, std=0.02, dtype=dtype)
