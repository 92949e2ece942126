"""Load balance without a loss: after each step the router's bias moves against the load.

  b_e ← b_e + γ·sign(mean load − load_e)

DeepSeek-V3, arXiv 2412.19437, section 2.1.2, after arXiv 2408.15664; γ = 0.001 in pretraining.
load_e counts the tokens that chose expert e over the whole global batch: sum it over microbatches
and devices first. Leading axes are layers, each balanced by itself. Cost: O(layers·E).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from r1jax.core import tree
from r1jax.optim.optimizer import is_balanced


def update(bias_E: jax.Array, load_E: jax.Array, gamma: jax.Array | float) -> jax.Array:
  """The bias after one step; any leading axes."""
  if bias_E.dtype != jnp.float32:
    raise TypeError(
      f'the router bias is {bias_E.dtype}; it must be float32: steps of γ vanish beside a bias of '
      'lower precision'
    )
  if bias_E.shape != load_E.shape:
    raise ValueError(f'the router bias has shape {bias_E.shape}, its load {load_E.shape}')
  load_E = load_E.astype(jnp.float32)
  # Relative to the first expert equal loads are exactly equal to their mean, whatever they are.
  load_E = load_E - load_E[..., :1]
  step_E = jnp.sign(load_E.sum(-1, keepdims=True) - load_E.shape[-1] * load_E)
  return bias_E + jnp.asarray(gamma, jnp.float32) * step_E


def apply(params: tree.Tree, loads: Mapping[str, jax.Array], gamma: jax.Array | float) -> tree.Tree:
  """Params with every router bias updated; loads by the path of the bias, 'run0/…/router/bias'."""
  biases = [path for path in tree.paths(params) if is_balanced(path)]
  if set(biases) != set(loads):
    raise ValueError(
      f'router biases without a load: {sorted(set(biases) - set(loads)) or "none"}; '
      f'loads without a router bias: {sorted(set(loads) - set(biases)) or "none"}'
    )
  return tree.map_named(
    lambda path, leaf: update(leaf, loads[path], gamma) if is_balanced(path) else leaf, params
  )
