"""PPO's critic, and the policy gradient step with it (losses: algos/ppo.py).

    Shared     V_t = w · h_t                     h: the policy's own last hidden layer
    Separate   V_t = w · critic(tokens)_t        a second trunk that begins as the policy

V_t judges the state before token t, so it lies where the token's log-probability lies. Cost: a
separate critic doubles weights, optimizer state and training flops.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.algos import ppo
from r1jax.algos.kl import k3
from r1jax.algos.ppo import PPO, Separate, Shared, Targets
from r1jax.algos.surrogate import masked
from r1jax.core.metrics import Mean
from r1jax.kernels.logprob import LogProbs
from r1jax.model.config import ModelConfig
from r1jax.model.heads import Scalar, ScalarConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.rollout.trajectory import RLBatch

CRITIC, VALUE = 'critic', 'value'


def heads(algorithm: PPO, cfg: ModelConfig) -> dict[str, tuple[nn.Module, tuple]]:
  """The value head, and a trunk of its own if it has one; the head begins as 0."""
  x_BLD = jnp.zeros((1, 1, cfg.embed), cfg.dtype)
  made = {VALUE: (Scalar(ScalarConfig(cfg.embed, std=0.0)), (x_BLD,))}
  if separate(algorithm):
    trunk = critic(cfg)
    made[CRITIC] = (Transformer(trunk), (dummy_inputs(trunk),))
  return made


def separate(algorithm: Any) -> bool:
  """Whether it is a PPO with a second trunk."""
  return isinstance(algorithm, PPO) and isinstance(algorithm.trunk, Separate)


def critic(cfg: ModelConfig) -> ModelConfig:
  """The policy without prediction modules."""
  return dataclasses.replace(cfg, mtp=())


def values(
  params: Any, b: RLBatch, x_BLD: jax.Array, cfg: ModelConfig, algorithm: PPO
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """value_BL in fp32, and the load of a critic's own experts; x_BLD is the policy's last layer."""
  load = {}
  match algorithm.trunk:
    case Shared(detach):
      x_BLD = jax.lax.stop_gradient(x_BLD) if detach else x_BLD
    case Separate():
      inputs = b.batch.inputs._replace(ahead=())
      out = Transformer(critic(cfg)).apply({'params': params[CRITIC]}, inputs)
      x_BLD, load = out.x_BLD, {f'{CRITIC}/{path}': n for path, n in out.load.items()}
  head = Scalar(ScalarConfig(cfg.embed, std=0.0))
  return head.apply({'params': params[VALUE]}, x_BLD), load


def loss(
  params: Any,
  b: RLBatch,
  scored: LogProbs,
  x_BLD: jax.Array,
  old_BL: jax.Array,
  mask_BL: jax.Array,
  cfg: ModelConfig,
  algorithm: PPO,
) -> tuple[Mean, dict[str, Mean], dict[str, jax.Array]]:
  """Policy and value loss of a part of a minibatch, metrics, the load of a critic's experts."""
  value_BL, load = values(params, b, x_BLD, cfg, algorithm)
  total, metrics = ppo.loss(
    scored.logp, old_BL, value_BL, b.value_BL, b.targets, mask_BL, algorithm
  )
  if b.ref_BL is not None:  # in the rewards; here it is only told
    logp_BL = jnp.where(mask_BL, jax.lax.stop_gradient(scored.logp), 0)
    metrics['kl'] = masked(k3(logp_BL, b.ref_BL), mask_BL)
  return total, metrics, load


def explained(value_BL: jax.Array, to: Targets, mask_BL: jax.Array) -> float:
  """1 − Var[return − value] / Var[return] over the counted tokens; 0 where returns are equal."""
  of = lambda x_BL: ppo.moments(x_BL, mask_BL)[1]
  left, all_ = (s / jnp.maximum(n, 1) for s, n in (of(to.return_BL - value_BL), of(to.return_BL)))
  return float(jnp.where(all_ > 0, 1 - left / jnp.where(all_ > 0, all_, 1), 0))
