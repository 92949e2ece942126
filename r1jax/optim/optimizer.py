"""AdamW over named parameters, as one optax transform.

  g ← g·min(1, clip/‖g‖);  θ ← θ − rate·(m̂/(√v̂ + eps) + weight_decay·θ)

Loshchilov and Hutter, arXiv 1711.05101; defaults of DeepSeek-V3, arXiv 2412.19437. What happens to
a leaf is decided by its path, not by its rank: layers of a run are stacked, which gives a norm's
scale two axes.

  router/bias           moved by balance.py alone: outside Adam, decay, clipping and ‖g‖
  …scale, …bias, norms   no decay

Cost: two moments beside each parameter, O(parameters) operations.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from r1jax.core import tree
from r1jax.optim.schedules import Schedule, schedule


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Adam with decoupled weight decay and global-norm clipping (None: no clipping).

  only: a regular expression of the paths that are trained, the others stay; None: all.
  """

  schedule: Schedule
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip: float | None = 1.0
  only: str | None = None

  def __post_init__(self) -> None:
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise ValueError(f'b1={self.b1}, b2={self.b2}; both must lie in [0, 1)')
    if self.eps <= 0 or self.weight_decay < 0:
      raise ValueError(f'eps={self.eps} must be > 0, weight_decay={self.weight_decay} ≥ 0')
    if self.clip is not None and self.clip <= 0:
      raise ValueError(f'clip is {self.clip}; it must be > 0, or None for no clipping')


def is_balanced(path: str) -> bool:
  """Whether the leaf is a router's bias, which balances load and has no gradient."""
  return tree.match(r'(.*/)?router/bias', path)


def is_trained(spec: AdamW, path: str) -> bool:
  """Whether the optimizer moves the leaf."""
  return spec.only is None or tree.match(spec.only, path)


def is_decayed(path: str) -> bool:
  """Whether weight decay applies to the leaf."""
  return not tree.match(r'.*norm.*|.*(scale|bias)', path)


def make(spec: AdamW, params: tree.Tree) -> optax.GradientTransformation:
  """The transform for params of these names; only the names are read, so shapes alone will do."""

  def label(path: str, _: jax.Array) -> str:
    if not is_trained(spec, path):
      return 'frozen'
    return 'balance' if is_balanced(path) else 'adam'

  labels = tree.map_named(label, params)
  if 'adam' not in jax.tree.leaves(labels):
    raise ValueError(f'only={spec.only!r} is the path of no parameter; nothing would be trained')
  adam = optax.chain(
    optax.identity() if spec.clip is None else optax.clip_by_global_norm(spec.clip),
    optax.scale_by_adam(spec.b1, spec.b2, spec.eps),
    optax.add_decayed_weights(spec.weight_decay, decay_mask),
    optax.scale_by_learning_rate(schedule(spec.schedule)),
  )
  parts = {'adam': adam, 'balance': optax.set_to_zero()}
  return optax.partition(parts | ({'frozen': optax.set_to_zero()} if spec.only else {}), labels)


def decay_mask(params: tree.Tree) -> tree.Tree:
  """True at the leaves to which weight decay applies."""
  return tree.map_named(lambda path, _: is_decayed(path), params)


def global_norm(grads: tree.Tree) -> jax.Array:
  """The norm that clipping compares with its bound: over all leaves but the router biases."""
  trained, _ = tree.split(grads, lambda path, _: not is_balanced(path))
  return optax.tree.norm(trained) if jax.tree.leaves(trained) else jnp.zeros(())
