"""Scores of one completion by itself in float64, and the library's of a batch."""

import dataclasses
import functools

import jax
import numpy as np

from r1jax.data import preferences as data
from r1jax.model import transformer
from r1jax.model.transformer import Transformer
from r1jax.train import preferences


@functools.partial(jax.jit, static_argnums=0)
def output(cfg, params, inputs):
  """x_BLD and the head's logits."""
  x_BLD = Transformer(cfg).apply({'params': params}, inputs).x_BLD
  return x_BLD, x_BLD @ transformer.head(params, cfg)


def whole(cfg, params, completion):
  """x_LD and log softmax_LV of one row by itself, in float64."""
  alone = dataclasses.replace(cfg, mtp=())
  (x_LD,), (z_LV,) = output(alone, params, data.batch([completion], 1, 48).batch.inputs)
  z_LV = np.float64(z_LV)
  return np.float64(x_LD), z_LV - np.log(np.exp(z_LV).sum(-1, keepdims=True))


def logp(cfg, params, completion):
  """Σ log-probability of a completion's tokens."""
  _, logp_LV = whole(cfg, params, completion)
  tokens, weights = completion.row.tokens, completion.row.weights
  return sum(logp_LV[i - 1, tokens[i]] for i in range(1, len(tokens)) if weights[i])


def rewards(cfg, params, completion):
  """r at the end of each judged part."""
  x_LD, _ = whole(cfg, params, completion)
  head = jax.tree.map(np.float64, params['reward'])
  return np.array([x_LD[end] @ head['weight'] + head['bias'] for end in completion.ends])


@functools.partial(jax.jit, static_argnums=(0, 1))
def judged(stage, cfg, params, b):
  """Scores of a batch."""
  return preferences.judged(params, b, cfg, stage)
