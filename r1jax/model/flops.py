"""Model flops: what the matmuls of a model need, for the utilization of a device (MFU).

A token's forward pass multiplies each matrix it meets once, 2 flops a number: attention, dense or
shared and active experts (never the idle ones), router, and the head for the main model and each
prediction depth. Attention scores and their weighted sum take 2·heads·(key + value width) more for
each position that the token sees; causal, so a segment of n tokens sees n(n+1)/2 in all, through a
window of w at most w a token, with k keys by an indexer at most k, while the indexer itself scores
all of them; a summary (nsa.py) is a position, and is made once. Embedding lookups, norms, softmax
and rotations are not counted.
Backward is twice the forward, so

    training = 3 · (tokens · 2·matrices + Σ_layers visible · 2·heads·(key + value))

which for short contexts is the familiar 6·N a token. What is computed again under remat is the
implementation's cost and not the model's: MFU counts 3 forwards, never 4.

Sources: PaLM (arXiv 2204.02311, appendix B) for the convention, of which this is the exact form
(it counts the full square of the attention; here only what the mask lets through); DeepSeek-V3
(2412.19437 §4.2) for 37B active parameters and one prediction depth.
"""

import functools
from collections.abc import Iterable

from r1jax.model.config import (
  GQA,
  MLA,
  Blocks,
  Dense,
  Full,
  Hybrid,
  Layer,
  ModelConfig,
  MoE,
  Pattern,
  TopK,
  Watched,
  Window,
)
from r1jax.model.keys import room


def training_flops(cfg: ModelConfig, lengths: Iterable[int]) -> int:
  """Model flops of a training step over segments of these lengths: forward and backward."""
  return 3 * forward_flops(cfg, lengths)


def forward_flops(cfg: ModelConfig, lengths: Iterable[int]) -> int:
  """Model flops of one forward pass over segments of these lengths, heads included."""
  lengths = [int(n) for n in lengths]  # Python's integers do not overflow
  layers = (*cfg.layers, *cfg.mtp)
  one = lambda a, n: (
    visible(a, n) * pair_width(a) + pairs(Full(), n) * scoring_width(a) + summaries(a, n)
  )
  made = sum(one(x.attention, n) for x in layers for n in lengths)
  return 2 * (sum(lengths) * active_matrices(cfg) + made)


def visible(cfg: MLA | GQA, length: int) -> int:
  """Pairs of a query and a position it sees, over a segment."""
  return pairs(cfg.pattern, length)


@functools.cache
def pairs(pattern: Pattern, length: int) -> int:
  """The same by pattern; of key tokens as many as there is room for."""
  match pattern:
    case Hybrid(window):
      far = sum(room(t, pattern) for t in range(window, length))
      return pairs(Window(window), length) + far
    case Blocks(select=size, selected=most, window=window):
      ended = sum(blocks(pattern, t + 1) for t in range(length))
      whole = sum(min(t + 1, (most - 1) * size + t % size + 1) for t in range(length))
      return ended + whole + pairs(Window(window), length)
    case Window(window) | TopK(keys=window) if window < length:
      return window * (window + 1) // 2 + (length - window) * window
    case _:
      return length * (length + 1) // 2


def blocks(pattern: Blocks, length: int) -> int:
  """How many blocks of a segment are summed up."""
  return max((length - pattern.compress) // pattern.stride + 1, 0)


def summaries(cfg: MLA | GQA, length: int) -> int:
  """Products for the keys and values that sum up a segment's blocks."""
  if not isinstance(cfg.pattern, Blocks):
    return 0
  one = (cfg.pattern.compress + 1) * cfg.head**2
  return blocks(cfg.pattern, length) * 2 * cfg.kv_heads * one


def active_matrices(cfg: ModelConfig) -> int:
  """Numbers in the matrices that one token is multiplied with; a head counts each time."""
  blocks = sum(layer_matrices(cfg.embed, layer) for layer in (*cfg.layers, *cfg.mtp))
  depths = len(cfg.mtp)
  return blocks + depths * 2 * cfg.embed**2 + (1 + depths) * cfg.embed * cfg.vocab


def layer_matrices(embed: int, layer: Layer) -> int:
  """The same for one block."""
  return attention_matrices(embed, layer.attention) + mlp_matrices(embed, layer.mlp)


def attention_matrices(embed: int, cfg: MLA | GQA) -> int:
  """Projections; those of MLA as in training, where keys and values are made from the latents."""
  own = indexer_matrices(embed, cfg)
  match cfg:
    case GQA(pattern=Blocks()):
      return embed * (cfg.head * (2 * cfg.heads + 3 * 2 * cfg.kv_heads) + 3 * cfg.heads)
    case GQA():
      return own + embed * cfg.head * 2 * (cfg.heads + cfg.kv_heads)
    case MLA():
      query = cfg.heads * (cfg.nope + cfg.rope)
      queries = cfg.q_latent * (embed + query) if cfg.q_latent else embed * query
      keys = embed * (cfg.kv_latent + cfg.rope) + cfg.kv_latent * cfg.heads * (cfg.nope + cfg.value)
      return own + queries + keys + cfg.heads * cfg.value * embed


def indexer_matrices(embed: int, cfg: MLA | GQA) -> int:
  """Of an indexer: queries from the query latent where there is one, a key, head weights."""
  match cfg.pattern:
    case TopK(indexer=i) | Watched(indexer=i):
      width = cfg.q_latent if isinstance(cfg, MLA) and cfg.q_latent else embed
      return width * i.heads * i.head + embed * (i.head + i.heads)
    case _:
      return 0


def scoring_width(cfg: MLA | GQA) -> int:
  """Products of an indexer for one query and one position before it."""
  match cfg.pattern:
    case TopK(indexer=i) | Watched(indexer=i):
      return i.heads * i.head
    case _:
      return 0


def mlp_matrices(embed: int, cfg: Dense | MoE) -> int:
  """SwiGLU's three; of experts the shared and the active ones, and the router."""
  match cfg:
    case Dense():
      return 3 * embed * cfg.ffw
    case MoE():
      return 3 * embed * cfg.ffw * (cfg.shared + cfg.active) + embed * cfg.experts


def pair_width(cfg: MLA | GQA) -> int:
  """Products for one query and one position it sees, over all heads: score and weighted sum."""
  match cfg:
    case GQA():
      return 2 * cfg.heads * cfg.head
    case MLA():
      return cfg.heads * (cfg.nope + cfg.rope + cfg.value)
