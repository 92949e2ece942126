"""Metrics as sums with weights, name -> (sum, weight): the mean of parts is that of the whole.

mean = Σ sum / Σ weight over micro-batches, steps and devices: adding the pairs commutes with every
split of the batch, where a mean of means does not. The values are scalars, on the device until
`finish` fetches them all at once.
"""

from collections.abc import Mapping

import jax

Value = jax.Array | float
Mean = tuple[Value, Value]


def scalar(x: Value) -> Mean:
  """A value that counts once."""
  return x, 1.0


def add(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> dict[str, Mean]:
  """The metrics of both parts together; a name that one part lacks comes from the other."""
  both = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a if name in b}
  return {**a, **b, **both}


def prefix(metrics: Mapping[str, Mean], text: str) -> dict[str, Mean]:
  """The same metrics under names that start with `text`, such as 'rl/'."""
  return {text + name: mean for name, mean in metrics.items()}


def fetch(metrics: Mapping[str, Mean]) -> dict[str, tuple[float, float]]:
  """The same pairs as Python floats."""
  fetched = jax.device_get(dict(metrics))
  return {name: (float(total), float(weight)) for name, (total, weight) in fetched.items()}


def finish(metrics: Mapping[str, Mean]) -> dict[str, float]:
  """The means as Python floats; nan where the weight is 0."""
  return {name: _ratio(*pair) for name, pair in fetch(metrics).items()}


def _ratio(total: float, weight: float) -> float:
  return total / weight if weight else float('nan')
