"""One optimizer step: gradients of sums over any split of the batch, one division, one update.

    g = ∇ Σ_micro (Σ loss) / D          D taken over the whole global batch before any split

so the gradient does not depend on microbatches, packing or devices (numerics contract, item 1).
After the optimizer the router bias moves by the load of the same batch (V3's balance without a
loss).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.core import metrics, tree
from r1jax.optim import balance
from r1jax.optim import optimizer as optim
from r1jax.train.state import State


class Aux(NamedTuple):
  """Beside the loss: metrics as (sum, weight) pairs and the routers' load by bias path."""

  metrics: dict[str, metrics.Mean]
  load: dict[str, jax.Array]


Loss = Callable[[Any, Any, Any], tuple[jax.Array, Aux]]  # (params, part of batch, denominators)


def accumulate(loss: Loss, params: Any, parts: Any, denominators: Any) -> tuple[Any, Aux]:
  """Sum of gradients and of aux over the leading axis of `parts`, one part in memory at a time."""
  grad = jax.grad(loss, has_aux=True)
  first = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), denominators)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)

  def one(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, grad(params, part, denominators)), None

  return jax.lax.scan(one, zeros, parts)[0]


def split(batch: Any, microbatches: int, axis: Callable[[Any], Any]) -> Any:
  """Leaves [.., B, ..] → [microbatches, .., B / microbatches, ..]; axis(batch) says where B is."""

  def one(x: jax.Array, a: int) -> jax.Array:
    if x.shape[a] % microbatches:
      raise ValueError(f'{microbatches} microbatches do not divide a batch of {x.shape[a]}')
    x = x.reshape(*x.shape[:a], microbatches, x.shape[a] // microbatches, *x.shape[a + 1 :])
    return jnp.moveaxis(x, a, 0)

  return jax.tree.map(one, batch, axis(batch))


def rows_first(batch: Any) -> Any:
  """Every leaf's batch axis is its first."""
  return jax.tree.map(lambda _: 0, batch)


def make(
  loss: Loss,
  denominators: Callable[[Any], Any],
  optimizer: optax.GradientTransformation,
  gamma: float,
  microbatches: int = 1,
  axis: Callable[[Any], Any] = rows_first,
  trains: Callable[[str], bool] | None = None,
) -> Callable[[State, Any], tuple[State, dict[str, metrics.Mean]]]:
  """The pure step; jit, donation and shardings are applied where it is called.

  trains: which leaves of the parameters have a gradient, by path; None: all, and router biases
  move. The others stay as they are, biases too.
  """

  def step(state: State, batch: Any) -> tuple[State, dict[str, metrics.Mean]]:
    d = denominators(batch)
    mine, rest = state.params, None
    if trains is not None:
      mine, rest = tree.split(state.params, lambda path, _: trains(path))
    whole = lambda mine: mine if trains is None else tree.merge(mine, rest)
    over = lambda mine, part, d: loss(whole(mine), part, d)
    if microbatches == 1:
      grads, aux = jax.grad(over, has_aux=True)(mine, batch, d)
    else:
      grads, aux = accumulate(over, mine, split(batch, microbatches, axis), d)
    updates, opt = optimizer.update(grads, state.opt, mine)
    params = whole(optax.apply_updates(mine, updates))
    if aux.load and trains is None:
      params = balance.apply(params, aux.load, gamma)
    norm = metrics.scalar(optim.global_norm(grads))
    return State(state.step + 1, params, opt, state.reference), {
      **aux.metrics,
      'gradient_norm': norm,
    }

  return step
