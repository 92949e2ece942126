"""Named models. `tiny_*` train on two CPU cores; `deepseek_v3` is the one of arXiv 2412.19437."""

from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, Rope, Yarn

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
