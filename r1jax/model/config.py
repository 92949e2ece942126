"""What a model is: a tuple of layers, each a pair of types; equal neighbours run as one stack.

Alternatives are types (`MLA | GQA`, `Dense | MoE`), dispatched once in block.py. Widths that follow
from the input (embed) are not repeated here.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Yarn:
  """Context extension by frequency interpolation; inactive up to `original` positions."""

  factor: float = 40.0
  original: int = 4096
  length: int = 163_840
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
  """Context extension of Llama 3.1 and later: long waves slowed, short kept, smooth between."""

  factor: float = 8.0
  original: int = 8192
  low: float = 1.0
  high: float = 4.0


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding; `interleaved` pairs (0, 1), (2, 3), … as V3 does, else (0, P/2), …"""

  theta: float = 10_000.0
  interleaved: bool = True
  scaling: Yarn | Llama3 | None = None


@dataclasses.dataclass(frozen=True)
class Full:
  """A token sees everything before it."""


@dataclasses.dataclass(frozen=True)
class Window:
  """A token sees the last `window` tokens, itself among them (Mistral 7B v0.1, Qwen 2)."""

  window: int

  def __post_init__(self):
    if self.window < 1:
      raise ValueError(f'a window holds at least the token itself, window={self.window} was given')


@dataclasses.dataclass(frozen=True)
class KeyTokens:
  """Key tokens by what they are: ModelConfig.key_ids, and the `first` tokens of a sequence.

  They are taken in order as long as there is room: of a sequence's first t tokens no more than
  share · (t + window − 1), so early ones first, and no more than `slots` in all, so none after
  those. A share makes the cost quadratic in the length; slots bound it.
  """

  share: float = 0.1
  first: int = 4
  slots: int | None = None

  def __post_init__(self):
    check_share(self)
    if self.first < 0:
      raise ValueError(f'first={self.first} of the tokens cannot be key tokens; 0 or more')


@dataclasses.dataclass(frozen=True)
class KeyScores:
  """Key tokens by a learned score: those above 0 are taken in order, as KeyTokens are.

  A token's value (MLA: its latent) is multiplied by 2σ(score), by which the score learns.
  """

  share: float = 0.1
  slots: int | None = None

  def __post_init__(self):
    check_share(self)


def check_share(keys: 'KeyTokens | KeyScores') -> None:
  """A share of the tokens, and room for one at least."""
  if not 0 < keys.share <= 1:
    raise ValueError(f'share={keys.share} of the tokens: expected more than 0, at most 1')
  if keys.slots is not None and keys.slots < 1:
    raise ValueError(f'slots={keys.slots}: expected one at least, or None')


@dataclasses.dataclass(frozen=True)
class Union:
  """One softmax over the window and the key tokens before it."""


@dataclasses.dataclass(frozen=True)
class Fixed:
  """A softmax each, and these weights; a query that sees no key token has its window alone."""

  window: float = 0.7
  keys: float = 0.3

  def __post_init__(self):
    if min(self.window, self.keys) < 0 or abs(self.window + self.keys - 1) > 1e-6:
      raise ValueError(f'two weights of at least 0 that sum to 1 expected, {self} was given')


@dataclasses.dataclass(frozen=True)
class Gate:
  """A softmax each, and a learned weight for every token and head: g of the window, 1 − g."""


@dataclasses.dataclass(frozen=True)
class Hybrid:
  """A token sees the last `window` tokens and, further back, the key tokens."""

  window: int = 64
  keys: KeyTokens | KeyScores = KeyTokens()
  mix: Union | Fixed | Gate = Union()

  def __post_init__(self):
    Window(self.window)


@dataclasses.dataclass(frozen=True)
class Indexer:
  """The lightning indexer: `heads` small heads of `head` numbers that share one key a token.

  Of each head the first `rope` numbers are rotated, with the frequencies of the attention's own
  rotary embedding; V3.2 does not interleave them.
  """

  heads: int = 64
  head: int = 128
  rope: int = 64
  interleaved: bool = False

  def __post_init__(self):
    if min(self.heads, self.head) < 1 or not 0 <= self.rope <= self.head or self.rope % 2:
      raise ValueError(f'heads and widths of at least 1, an even rope of at most head: {self}')


@dataclasses.dataclass(frozen=True)
class TopK:
  """A token sees the `keys` tokens up to itself that the indexer scores highest (DSA, V3.2)."""

  keys: int = 2048
  indexer: Indexer = Indexer()

  def __post_init__(self):
    if self.keys < 1:
      raise ValueError(f'keys={self.keys}: a token sees one key at least')


@dataclasses.dataclass(frozen=True)
class Watched:
  """A token sees everything before it, and an indexer learns beside it which of it counts.

  What `TopK` is while its indexer warms up (train/supervised.py); the weights are the same.
  """

  indexer: Indexer = Indexer()


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Three branches with keys of their own and a learned gate each (NSA); on GQA only.

  Summaries of blocks of `compress` tokens, one every `stride`; `selected` blocks of `select` tokens
  whole: a sequence's `first`, the last `local` and those whose summaries weigh most; the last
  `window` tokens. Blocks are counted from the start of a sequence.
  """

  compress: int = 32
  stride: int = 16
  select: int = 64
  selected: int = 16
  first: int = 1
  local: int = 2
  window: int = 512

  def __post_init__(self):
    Window(self.window)
    if self.stride < 1 or min(self.first, self.local) < 0:
      raise ValueError(f'stride of 1 or more, first and local of 0 or more expected: {self}')
    for name in ('compress', 'select'):
      if (size := getattr(self, name)) < 1 or size % self.stride:
        raise ValueError(f'{name}={size} must be a multiple of stride={self.stride}')
    if self.selected < (least := max(self.first + self.local, 2)):
      raise ValueError(
        f'selected={self.selected} blocks; expected {least} at least: first={self.first} and '
        f'local={self.local} are always among them, and never fewer than 2'
      )


Pattern = Full | Window | Hybrid | TopK | Watched | Blocks


@dataclasses.dataclass(frozen=True)
class MLA:
  """Multi-head latent attention: heads of nope + rope and `value` width over low-rank latents."""

  heads: int
  nope: int
  rope: int
  value: int
  kv_latent: int
  q_latent: int | None = None
  rotary: Rope = Rope()
  eps: float = 1e-6
  std: float = 0.006
  pattern: Pattern = Full()

  def __post_init__(self):
    if isinstance(self.pattern, Blocks):
      raise ValueError(
        'pattern=Blocks has keys and values of its own in each branch, MLA one latent for all; '
        'use it on GQA, or on MLA the learned choice of single tokens, TopK'
      )


@dataclasses.dataclass(frozen=True)
class GQA:
  """Grouped-query attention; `qk_norm` as in Qwen 3, `bias` on q, k, v as in Qwen 2.5."""

  heads: int
  kv_heads: int
  head: int
  qk_norm: bool = False
  bias: bool = False
  pattern: Pattern = Full()
  rotary: Rope = Rope(interleaved=False)
  eps: float = 1e-6
  std: float = 0.02

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise ValueError(f'heads={self.heads} must be a multiple of kv_heads={self.kv_heads}')


@dataclasses.dataclass(frozen=True)
class Dense:
  """SwiGLU."""

  ffw: int
  std: float = 0.006


@dataclasses.dataclass(frozen=True)
class MoE:
  """Shared and routed experts of width `ffw`; the V3 router unless said otherwise.

  Of `groups` groups of experts the best `active_groups` are open to a token, of their experts the
  best `active` compute it. group_score: a group counts as the sum of its two best experts (V3) or
  as its best one (V2). gates: scores of the chosen experts over their sum (V3, Qwen 3), or as they
  are (V2).
  """

  ffw: int
  experts: int
  active: int
  shared: int = 1
  groups: int = 1
  active_groups: int = 1
  score: Literal['sigmoid', 'softmax'] = 'sigmoid'
  group_score: Literal['two_best', 'best'] = 'two_best'
  gates: Literal['normalized', 'raw'] = 'normalized'
  scale: float = 1.0
  std: float = 0.006

  def __post_init__(self):
    if self.experts % self.groups or not 1 <= self.active_groups <= self.groups:
      raise ValueError(f'experts must split evenly into groups, active_groups be within: {self}')
    if self.active > self.experts // self.groups * self.active_groups:
      raise ValueError(
        f'active={self.active} experts do not fit into {self.active_groups} groups: {self}'
      )


@dataclasses.dataclass(frozen=True)
class Layer:
  """One transformer block: pre-norm attention, pre-norm feed-forward."""

  attention: MLA | GQA
  mlp: Dense | MoE
  eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The whole model: `mtp` is a layer for each prediction depth, `dtype` that of activations.

  key_ids: the tokens that KeyTokens takes; empty, training fills in what the tokenizer calls
  punctuation and paragraph ends.

  mtp_input: what the first depth sees: the residual stream after the final norm, as servers of V3's
  public weights have it (the paper leaves it open), or before it.
  """

  vocab: int
  embed: int
  layers: tuple[Layer, ...]
  mtp: tuple[Layer, ...] = ()
  key_ids: tuple[int, ...] = ()
  mtp_input: Literal['normed', 'stream'] = 'normed'
  tied: bool = False
  eps: float = 1e-6
  std: float = 0.006
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'full'] = 'full'

  def __post_init__(self):
    if not self.layers:
      raise ValueError('a model needs at least one layer')
    if outside := [i for i in self.key_ids if not 0 <= i < self.vocab]:
      raise ValueError(f'key_ids: {outside[0]} is not in the vocabulary of {self.vocab}')

  @property
  def patterns(self) -> tuple[Pattern, ...]:
    """Of all layers, those of the prediction depths last."""
    return tuple(layer.attention.pattern for layer in (*self.layers, *self.mtp))

  @property
  def asks_for_key_ids(self) -> bool:
    """Whether a layer takes key tokens by what they are."""
    return any(isinstance(p, Hybrid) and isinstance(p.keys, KeyTokens) for p in self.patterns)

  @property
  def indexers(self) -> int:
    """How many layers have an indexer."""
    return sum(isinstance(p, TopK | Watched) for p in self.patterns)


def with_attention(cfg: ModelConfig, change: Callable[[MLA | GQA], MLA | GQA]) -> ModelConfig:
  """The model with each layer's attention changed, those of the prediction depths too."""
  one = lambda layer: dataclasses.replace(layer, attention=change(layer.attention))
  layers, mtp = tuple(map(one, cfg.layers)), tuple(map(one, cfg.mtp))
  return dataclasses.replace(cfg, layers=layers, mtp=mtp)


@dataclasses.dataclass(frozen=True)
class Run:
  """`repeats` times the same period of layers, stacked; weights are named block0..block{p-1}."""

  period: tuple[Layer, ...]
  repeats: int


def runs(layers: tuple[Layer, ...], longest: int = 8) -> tuple[Run, ...]:
  """Layers as runs: from the left, the period (shortest first) that repeats over the most layers.

  Three dense and 58 expert layers are two runs; (local ×5, global) ×8 is one run of period six.
  """
  found, at = [], 0
  while at < len(layers):
    best = Run(layers[at : at + 1], 1)
    for p in range(1, min(longest, (len(layers) - at) // 2) + 1):
      period, n = layers[at : at + p], 1
      while layers[at + n * p : at + (n + 1) * p] == period:
        n += 1
      if n > 1 and n * p > len(best.period) * best.repeats:
        best = Run(period, n)
    found.append(best)
    at += len(best.period) * best.repeats
  return tuple(found)
