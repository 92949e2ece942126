"""Learning-rate schedules as frozen types, functions of the number n = 1, 2, … of an update.

Every schedule climbs linearly, rate = peak·n/warmup, so that the first update already moves and
update `warmup` has the peak. Then

  Constant   peak
  Linear     end + (peak − end)(1 − p), then end
  Cosine     end + (peak − end)(1 + cos πp)/2, p = (n − warmup)/(steps − warmup), then end
  Trapezoid  peak for `hold`, cosine to end over `decay`, end for `tail`, then last (None: end)

Cosine is R1's SFT schedule (arXiv 2501.12948), Trapezoid is V3's pretraining (arXiv 2412.19437):
all in updates, where the papers give tokens. optax counts the updates done so far, c = n − 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Constant:
  """Warm-up, then one rate for ever."""

  peak: float
  warmup: int = 0

  def __post_init__(self) -> None:
    _check_lengths(self, 'warmup')


@dataclasses.dataclass(frozen=True)
class Linear:
  """Warm-up, then a straight line to `end` at update `steps`."""

  peak: float
  end: float
  steps: int
  warmup: int = 0

  def __post_init__(self) -> None:
    _check_lengths(self, 'warmup')
    _check_room(self)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Warm-up, then half a cosine to `end` at update `steps`."""

  peak: float
  end: float
  steps: int
  warmup: int = 0

  def __post_init__(self) -> None:
    _check_lengths(self, 'warmup')
    _check_room(self)


@dataclasses.dataclass(frozen=True)
class Trapezoid:
  """Warm-up, hold, cosine decay, tail; the lengths are numbers of updates."""

  peak: float
  end: float
  warmup: int
  hold: int
  decay: int
  tail: int = 0
  last: float | None = None

  def __post_init__(self) -> None:
    _check_lengths(self, 'warmup', 'hold', 'decay', 'tail')


Schedule = Constant | Linear | Cosine | Trapezoid


def schedule(spec: Schedule) -> optax.Schedule:
  """The optax schedule (updates done so far → rate of the next one) that spec describes."""
  return lambda count: rate(spec, jnp.asarray(count) + 1)


def rate(spec: Schedule, n: jax.Array) -> jax.Array:
  """The rate of update number n, the first being 1."""
  match spec:
    case Constant(peak, warmup):
      after = jnp.full(jnp.shape(n), peak)
    case Linear(peak, end, steps, warmup):
      after = peak + (end - peak) * _progress(n, warmup, steps)
    case Cosine(peak, end, steps, warmup):
      after = _cosine(peak, end, _progress(n, warmup, steps))
    case Trapezoid(peak, end, warmup, hold, decay, tail, last):
      held = warmup + hold
      after = _cosine(peak, end, _progress(n, held, held + decay))
      if last is not None:
        after = jnp.where(n > held + decay + tail, last, after)
  return jnp.where(n < warmup, spec.peak * n / max(spec.warmup, 1), after)


def _progress(n: jax.Array, start: int, stop: int) -> jax.Array:
  """0 up to update `start`, 1 from update `stop` on, straight between."""
  return jnp.clip((n - start) / max(stop - start, 1), 0, 1)


def _cosine(peak: float, end: float, p: jax.Array) -> jax.Array:
  return end + (peak - end) * (1 + jnp.cos(jnp.pi * p)) / 2


def _check_lengths(spec: Schedule, *names: str) -> None:
  for name in names:
    if getattr(spec, name) < 0:
      raise ValueError(f'{name} is {getattr(spec, name)}; it is a number of updates, ≥ 0')


def _check_room(spec: Linear | Cosine) -> None:
  if spec.steps <= spec.warmup:
    raise ValueError(
      f'steps is {spec.steps}, warmup is {spec.warmup}; steps counts the warm-up and must exceed it'
    )
