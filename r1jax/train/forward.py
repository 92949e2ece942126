"""The model's view of a batch, shared by every objective.

    L = L_main + λ L_MTP + α L_balance + L_length + L_indexer

Each term is a sum over this part of the batch over a denominator of the whole one.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.algos import length_fit, sft
from r1jax.algos.length_fit import LengthFit
from r1jax.core.metrics import Mean
from r1jax.data.batch import Batch, sequences
from r1jax.kernels.logprob import LogProbs, logprobs
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model import transformer
from r1jax.model.config import GQA, MLA, ModelConfig, MoE, TopK, Watched, with_attention
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.model.transformer import Output, Transformer

REMAINING = 'remaining'  # the length fit's head


@dataclasses.dataclass(frozen=True)
class Warmup:
  """Indexers alone learn, KL(attention ‖ softmax I), while every layer sees everything.

  The stage's optimizer must train them alone: AdamW(only=INDEXERS). DeepSeek-V3.2 (arXiv
  2512.02556) takes 1,000 steps at a rate of 1e-3.
  """


@dataclasses.dataclass(frozen=True)
class Sparse:
  """Layers attend to the keys that their indexers choose; these learn beside the model.

  weight: of the same KL over the chosen keys, which moves the indexers alone.
  """

  weight: float = 1.0

  def __post_init__(self):
    if self.weight < 0:
      raise ValueError(f"weight={self.weight} of the indexers' loss; 0 or more")


INDEXERS = r'(.*/)?indexer/.*'  # their parameters' paths


@dataclasses.dataclass(frozen=True)
class Auxiliary:
  """Weights beside the main loss.

  mtp: λ; with detach_mtp the modules learn from the trunk without moving it (so RL keeps drafts in
  step).
  balance: α of the sequence-wise balance loss; gamma: speed of the router bias.
  length: a head that learns how many tokens are still to come; None has no such head.
  indexer: how the indexers of TopK layers are trained.
  """

  mtp: float = 0.3
  detach_mtp: bool = False
  balance: float = 1e-4
  gamma: float = 1e-3
  length: LengthFit | None = None
  indexer: Warmup | Sparse = Sparse()


class Denominators(NamedTuple):
  """What each term is divided by.

  The main loss' own, target tokens, sequences × expert layers, tokens × indexers.
  """

  main: jax.Array
  tokens: jax.Array
  balance: jax.Array
  index: jax.Array


def staged(cfg: ModelConfig, aux: Auxiliary) -> ModelConfig:
  """The model as a stage trains it: while indexers warm up, they watch."""
  if not isinstance(aux.indexer, Warmup):
    return cfg
  if not cfg.indexers:
    raise ValueError('Warmup trains indexers, and no layer of the model has a TopK pattern')

  def one(attention: MLA | GQA) -> MLA | GQA:
    if not isinstance(attention.pattern, TopK):
      return attention
    return dataclasses.replace(attention, pattern=Watched(attention.pattern.indexer))

  return with_attention(cfg, one)


def denominators(batch: Batch, main: jax.Array, cfg: ModelConfig) -> Denominators:
  """Over the whole global batch; a batch without a counted token divides by one."""
  layers = sum(isinstance(l.mlp, MoE) for l in cfg.layers + cfg.mtp)
  counted = sequences(batch.inputs.segments_BL, batch.inputs.positions_BL) * layers
  indexed = (batch.inputs.segments_BL > 0).sum() * cfg.indexers
  return Denominators(
    *(jnp.maximum(x, 1) for x in (main, batch.weights_BL.sum(), counted, indexed))
  )


def run(
  params: Any,
  cfg: ModelConfig,
  batch: Batch,
  sampling: Sampling,
  routes: tuple | None,
  detach_mtp: bool,
  support_BLK: jax.Array | None = None,
) -> tuple[Output, LogProbs]:
  """Model output and the targets' log-probabilities under the sampler's distribution.

  support_BLK: its kept sets, in place of those that these logits would keep.
  """
  out = Transformer(cfg).apply({'params': params}, batch.inputs, None, routes, detach_mtp)
  head = transformer.head(params, cfg)
  return out, logprobs(out.x_BLD, head, batch.targets_BL, sampling, support_BLK=support_BLK)


def heads(aux: Auxiliary, cfg: ModelConfig) -> dict[str, tuple[nn.Module, tuple]]:
  """What is trained beside the model for these terms; it begins as 0."""
  if aux.length is None:
    return {}
  return {REMAINING: (_length_head(cfg), (jnp.zeros((1, 1, cfg.embed), cfg.dtype),))}


def auxiliary(
  params: Any,
  cfg: ModelConfig,
  batch: Batch,
  out: Output,
  aux: Auxiliary,
  d: Denominators,
  cut_B: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Mean]]:
  """The terms beside the main loss of this part, and their metrics.

  cut_B: rows whose completion a limit cut, so that nobody knows its length.
  """
  total, metrics = jnp.zeros(()), {}
  if cfg.mtp:
    head = transformer.head(params, cfg)
    head = jax.lax.stop_gradient(head) if aux.detach_mtp else head
    logps = [logprobs(x, head, y).logp for x, y in zip(out.mtp, batch.ahead_targets)]
    mtp_sum, mtp_weight = sft.mtp_loss(logps, batch.ahead_weights, batch.weights_BL)
    total += aux.mtp * mtp_sum / d.tokens
    metrics['mtp_loss'] = (mtp_sum, mtp_weight)
  if aux.length:
    x_BLD = jax.lax.stop_gradient(out.x_BLD) if aux.length.detach else out.x_BLD
    y_BL = _length_head(cfg).apply({'params': params[REMAINING]}, x_BLD)
    weights_BL = batch.weights_BL if cut_B is None else batch.weights_BL * ~cut_B[:, None]
    length_sum, weight = length_fit.loss(y_BL, weights_BL, batch.inputs.segments_BL)
    total += aux.length.weight * length_sum / d.tokens
    metrics['length_loss'] = (length_sum, weight)
  if out.load:
    total += aux.balance * out.balance.total / d.balance
    metrics['balance_loss'] = (out.balance.total, out.balance.weight)
    loads_nE = jnp.concatenate([l.reshape(-1, l.shape[-1]) for l in out.load.values()])
    spread = loads_nE.max(-1) / jnp.maximum(loads_nE.mean(-1), 1)
    metrics['load_max_over_mean'] = (spread.sum(), jnp.float32(spread.size))
  if cfg.indexers:
    total += aux.indexer.weight * out.index.total / d.index
    metrics['indexer_loss'] = tuple(out.index)
  return total, metrics


def _length_head(cfg: ModelConfig) -> Scalar:
  return Scalar(ScalarConfig(cfg.embed, std=0.0))
