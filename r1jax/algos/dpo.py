"""Direct preference optimization: the policy itself as the reward model of its preferences.

  s(y)   = log π(y)/π_ref(y)            Summed;   the same over |y|   PerToken
  h      = s(chosen) − s(rejected)
  Sigmoid  −(1−ε) log σ(β h) − ε log σ(−β h)      DPO, arXiv 2305.18290; ε > 0 is conservative DPO
  IPO      (h − 1/(2β))²                          arXiv 2310.12036, equation 17, τ = β
  nll      + α · −log π(chosen)/|chosen|          arXiv 2404.19733, equation 2

With Summed, Sigmoid's minimum over preferences of a Bradley-Terry reward r is π ∝ π_ref exp(r/β).
IPO's h stays bounded where every label agrees. PerToken is what TRL calls `sigmoid_norm`, and what
it means by `ipo`. Losses of h alone are met, too, by both sides becoming unlikely, the rejected one
more so; nll keeps the chosen one written. Log-probabilities are sums over the completion's tokens,
prompts left out; the reference's are constants. Cost: O(B) beside two scored completions a pair.
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.algos.surrogate import masked
from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class Sigmoid:
  """Logistic loss; smoothing is the share of labels believed to be the wrong way round."""

  smoothing: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.smoothing < 0.5:
      raise ValueError(f'smoothing is {self.smoothing}; it must lie in [0, 0.5)')


@dataclasses.dataclass(frozen=True)
class IPO:
  """Squared distance of h from 1/(2β)."""


@dataclasses.dataclass(frozen=True)
class Summed:
  """The score of a completion is the sum over its tokens."""


@dataclasses.dataclass(frozen=True)
class PerToken:
  """The score of a completion is the mean over its tokens: no premium on length."""


@dataclasses.dataclass(frozen=True)
class DPO:
  """beta: strength of the pull to the reference, in the unit that `score` gives.

  nll: α, weight of the chosen completions' own loss, nats a token; 0 leaves it out (1 is usual).
  """

  beta: float = 0.1
  form: Sigmoid | IPO = dataclasses.field(default_factory=Sigmoid)
  score: Summed | PerToken = dataclasses.field(default_factory=Summed)
  nll: float = 0.0

  def __post_init__(self) -> None:
    if self.beta <= 0:
      raise ValueError(f'beta is {self.beta}; it must be > 0')
    if self.nll < 0:
      raise ValueError(f'nll is {self.nll}; it must be ≥ 0')


class Scored(NamedTuple):
  """One side of the pairs: log-probs of its completions and their lengths in tokens."""

  logp_B: jax.Array
  ref_B: jax.Array
  tokens_B: jax.Array


def score(side: Scored, how: Summed | PerToken) -> jax.Array:
  """log π/π_ref of each completion, or its mean over the tokens."""
  ratio_B = side.logp_B - jax.lax.stop_gradient(side.ref_B)
  match how:
    case Summed():
      return ratio_B
    case PerToken():
      return ratio_B / jnp.maximum(side.tokens_B, 1)


def pair_losses(h_B: jax.Array, cfg: DPO) -> jax.Array:
  """Loss of each pair from the difference of its scores."""
  match cfg.form:
    case Sigmoid(smoothing):
      won_B, lost_B = jax.nn.log_sigmoid(cfg.beta * h_B), jax.nn.log_sigmoid(-cfg.beta * h_B)
      return -(1 - smoothing) * won_B - smoothing * lost_B
    case IPO():
      return jnp.square(h_B - 1 / (2 * cfg.beta))


def loss(
  chosen: Scored, rejected: Scored, cfg: DPO, mask_B: jax.Array | None = None
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) over the pairs; mask_B is False for rows that only fill a batch up.

  Rewards are β·score; a tie does not count as accurate, so the policy starts at 0.
  """
  chex.assert_equal_shape([*chosen, *rejected])
  mask_B = jnp.ones(chosen.logp_B.shape, bool) if mask_B is None else mask_B.astype(bool)
  chosen_B, rejected_B = (
    jnp.where(mask_B, score(side, cfg.score), 0) for side in (chosen, rejected)
  )
  h_B = chosen_B - rejected_B
  per_pair = {
    'accuracy': (h_B > 0).astype(h_B.dtype),
    'margin': cfg.beta * h_B,
    'chosen_reward': cfg.beta * chosen_B,
    'rejected_reward': cfg.beta * rejected_B,
  }
  losses_B = pair_losses(h_B, cfg)
  if cfg.nll:
    logp_B = jnp.where(mask_B, chosen.logp_B, 0)
    per_pair['chosen_nll'] = -logp_B / jnp.maximum(chosen.tokens_B, 1)
    losses_B += cfg.nll * per_pair['chosen_nll']
  metrics = {name: masked(x_B, mask_B) for name, x_B in per_pair.items()}
  return masked(losses_B, mask_B), metrics
