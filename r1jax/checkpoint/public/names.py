"""The tables of names: (ours, theirs, how it lies), one list for each kind of layer.

Loading and saving read the same rows; a stacked leaf has one public tensor a layer, or a layer and
expert ('{e}'). Names are those of the Hugging Face checkpoints of DeepSeek-V2, V3, R1 and V3.2,
Llama, Qwen 2, Qwen 3 and Mistral; GGUF's are derived from them (gguf_names.py).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from r1jax.checkpoint.public.layout import Layout
from r1jax.model.config import GQA, MLA, Dense, Layer, ModelConfig, MoE, TopK, runs


class Row(NamedTuple):
  """A leaf below its block, the public name below its layer, and the layout."""

  ours: str
  theirs: str | None  # None: the family has no such tensor; ours is zero
  pattern: str
  part: tuple[str, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One of our leaves: `names[index]` of its stacking axes is the public tensor there."""

  stack: tuple[int, ...]
  names: dict[tuple[int, ...], str] | None
  layout: Layout

  @property
  def shape(self) -> tuple[int, ...]:
    """With the stacking axes."""
    return (*self.stack, *self.layout.ours)


def table(cfg: ModelConfig, router_bias: bool) -> dict[str, Leaf]:
  """Every leaf of a model, by path. router_bias: whether the family stores one."""
  leaves = {path: Leaf((), {(): name}, lay) for path, name, lay in top(cfg)}
  first = 0
  for i, run in enumerate(runs(cfg.layers)):
    period = len(run.period)
    for j, spec in enumerate(run.period):
      numbers = range(first + j, first + period * run.repeats, period)
      for row in layer_rows(spec, router_bias):
        leaves[f'run{i}/block{j}/{row.ours}'] = stacked(row, spec, cfg.embed, numbers)
    first += period * run.repeats
  for d, spec in enumerate(cfg.mtp):
    for row in layer_rows(spec, router_bias):
      leaf = stacked(row, spec, cfg.embed, range(first + d, first + d + 1))
      names = leaf.names and {index[1:]: name for index, name in leaf.names.items()}
      leaves[f'mtp{d}/block/{row.ours}'] = Leaf(leaf.stack[1:], names, leaf.layout)
    for ours, theirs, pattern, _ in PREDICTION:
      name = f'model.layers.{first + d}.{theirs}'
      leaves[f'mtp{d}/{ours}'] = Leaf((), {(): name}, Layout(pattern, sizes(spec, cfg.embed)))
  return leaves


def copies(cfg: ModelConfig) -> dict[str, str]:
  """Public tensors that repeat another one: {copy: original}; a checkpoint may leave them out."""
  first = len(cfg.layers)
  found = {'lm_head.weight': EMBEDDING} if cfg.tied else {}
  for d in range(first, first + len(cfg.mtp)):
    found[f'model.layers.{d}.embed_tokens.weight'] = EMBEDDING
    found[f'model.layers.{d}.shared_head.head.weight'] = EMBEDDING if cfg.tied else HEAD
  return found


EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
PREDICTION = (
  Row('embedding_scale', 'enorm.weight', 'D -> D'),
  Row('hidden_scale', 'hnorm.weight', 'D -> D'),
  Row('project', 'eh_proj.weight', 'D J -> J D'),
  Row('out_scale', 'shared_head.norm.weight', 'D -> D'),
)


def top(cfg: ModelConfig) -> Iterator[tuple[str, str, Layout]]:
  """What is not in a layer."""
  size = (('V', cfg.vocab), ('D', cfg.embed))
  yield 'embedding', EMBEDDING, Layout('V D -> V D', size)
  yield 'final_scale', 'model.norm.weight', Layout('D -> D', size)
  if not cfg.tied:
    yield 'head', HEAD, Layout('V D -> D V', size)


def layer_rows(spec: Layer, router_bias: bool) -> list[Row]:
  """One block."""
  rows = [
    Row('attention_scale', 'input_layernorm.weight', 'D -> D'),
    Row('mlp_scale', 'post_attention_layernorm.weight', 'D -> D'),
  ]
  match spec.attention:
    case MLA():
      rows += latent(spec.attention)
    case GQA():
      rows += grouped(spec.attention)
  match spec.mlp:
    case Dense():
      return rows + feed_forward('mlp', 'mlp', 'F')
    case MoE():
      return rows + experts(spec.mlp, router_bias)


def latent(c: MLA) -> list[Row]:
  """MLA: kv_b_proj's rows are keys and values by head; ours are two leaves."""
  rows = [
    Row('attention/kv_down', 'self_attn.kv_a_proj_with_mqa.weight', 'Q D -> D Q'),
    Row('attention/kv_scale', 'self_attn.kv_a_layernorm.weight', 'R -> R'),
    Row('attention/k_up', KV_UP, '(N C) R -> R N C', ('C', 0, c.nope)),
    Row('attention/v_up', KV_UP, '(N C) R -> R N C', ('C', c.nope, c.nope + c.value)),
    Row('attention/out', 'self_attn.o_proj.weight', 'D (N U) -> N U D'),
  ]
  if c.q_latent is None:
    return [*rows, Row('attention/q_up', 'self_attn.q_proj.weight', '(N H) D -> D N H')]
  return [
    *rows,
    *(indexer() if isinstance(c.pattern, TopK) else ()),
    Row('attention/q_down', 'self_attn.q_a_proj.weight', 'S D -> D S'),
    Row('attention/q_scale', 'self_attn.q_a_layernorm.weight', 'S -> S'),
    Row('attention/q_up', 'self_attn.q_b_proj.weight', '(N H) S -> S N H'),
  ]


def indexer() -> list[Row]:
  """Of V3.2, whose indexer takes its queries from the query latent."""
  ours, theirs = 'attention/indexer', 'self_attn.indexer'
  return [
    Row(f'{ours}/q', f'{theirs}.wq_b.weight', '(T I) S -> S T I'),
    Row(f'{ours}/k', f'{theirs}.wk.weight', 'I D -> D I'),
    Row(f'{ours}/k_scale', f'{theirs}.k_norm.weight', 'I -> I'),
    Row(f'{ours}/k_bias', f'{theirs}.k_norm.bias', 'I -> I'),
    Row(f'{ours}/weight', f'{theirs}.weights_proj.weight', 'T D -> D T'),
  ]


KV_UP = 'self_attn.kv_b_proj.weight'


def grouped(c: GQA) -> list[Row]:
  """GQA, with norms and biases where the config has them."""
  heads = {'q': 'N', 'k': 'K', 'v': 'K'}
  rows = [Row('attention/out', 'self_attn.o_proj.weight', 'D (N H) -> N H D')]
  for n, N in heads.items():
    rows.append(Row(f'attention/{n}', f'self_attn.{n}_proj.weight', f'({N} H) D -> D {N} H'))
    if c.bias:
      rows.append(Row(f'attention/{n}_bias', f'self_attn.{n}_proj.bias', f'({N} H) -> {N} H'))
  if c.qk_norm:
    rows += [Row(f'attention/{n}_scale', f'self_attn.{n}_norm.weight', 'H -> H') for n in 'qk']
  return rows


def feed_forward(ours: str, theirs: str, width: str) -> list[Row]:
  """SwiGLU."""
  into = [Row(f'{ours}/{n}', f'{theirs}.{n}_proj.weight', f'{width} D -> D {width}') for n in GATED]
  return [*into, Row(f'{ours}/down', f'{theirs}.down_proj.weight', f'D {width} -> {width} D')]


GATED = ('gate', 'up')


def experts(c: MoE, router_bias: bool) -> list[Row]:
  """Router, routed and shared experts."""
  bias = 'mlp.gate.e_score_correction_bias' if router_bias else None
  return [
    Row('mlp/router/weight', 'mlp.gate.weight', 'E D -> D E'),
    Row('mlp/router/bias', bias, 'E -> E'),
    *feed_forward('mlp', 'mlp.experts.{e}', 'F'),
    *(feed_forward('mlp/shared', 'mlp.shared_experts', 'W') if c.shared else []),
  ]


def sizes(spec: Layer, embed: int) -> tuple[tuple[str, int], ...]:
  """What the letters of the patterns stand for in a layer."""
  found = {'D': embed, 'J': 2 * embed}
  match c := spec.attention:
    case MLA():
      found |= {'N': c.heads, 'H': c.nope + c.rope, 'U': c.value, 'C': c.nope + c.value}
      found |= {'R': c.kv_latent, 'Q': c.kv_latent + c.rope, 'S': c.q_latent or 0}
      if isinstance(c.pattern, TopK):
        found |= {'T': c.pattern.indexer.heads, 'I': c.pattern.indexer.head}
    case GQA():
      found |= {'N': c.heads, 'K': c.kv_heads, 'H': c.head}
  found['F'] = spec.mlp.ffw
  if isinstance(spec.mlp, MoE):
    found |= {'E': spec.mlp.experts, 'W': spec.mlp.ffw * spec.mlp.shared}
  return tuple(found.items())


def stacked(row: Row, spec: Layer, embed: int, numbers: range) -> Leaf:
  """The leaf of a row over layers of these numbers, and over experts where the name has them."""
  layout = Layout(row.pattern, sizes(spec, embed), row.part)
  if row.theirs is None:
    return Leaf((len(numbers),), None, layout)
  stack = (len(numbers), spec.mlp.experts) if '{e}' in row.theirs else (len(numbers),)
  names = {
    index: f'model.layers.{numbers[index[0]]}.' + row.theirs.format(e=index[-1])
    for index in itertools.product(*map(range, stack))
  }
  return Leaf(stack, names, layout)
