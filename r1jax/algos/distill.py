"""Distillation on a teacher's distribution or on its hidden layers.

With t and s the teacher's and the student's distribution at a position, both at temperature T:

  Forward      KL(t ‖ s)                                     covers the teacher's modes
  Reverse      KL(s ‖ t)                                     seeks one of them
  Jensen(α)    α KL(t ‖ m) + (1−α) KL(s ‖ m),  m = α t + (1−α) s      GKD, arXiv 2306.13649
  Skew(α)      KL(t ‖ α t + (1−α) s)                         DistiLLM, arXiv 2402.03898

each times T², which keeps the size of the gradient (Hinton et al., arXiv 1503.02531). `full` takes
logits [B, L, V] of both. `stored` takes what is kept of a teacher: K ids a position with their
log-probabilities (at T, before storing), and of the student its logits at those ids and the
log-sum-exp over the vocabulary, so that nothing of size V exists. What the K leave over is

  Bucket    one more event, "some other token": a lower bound of the full divergence
  Ignored   nothing: both distributions are those given that the token is one of the K

`hidden` is the mean squared error of a projected hidden layer, 1/E |h W − h'|². Teachers are
constants. Cost: O(B·L·V), O(B·L·K), and 2·B·L·D·E flops.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from r1jax.algos.surrogate import masked
from r1jax.core.metrics import Mean


@dataclasses.dataclass(frozen=True)
class Forward:
  """KL(teacher ‖ student)."""


@dataclasses.dataclass(frozen=True)
class Reverse:
  """KL(student ‖ teacher)."""


@dataclasses.dataclass(frozen=True)
class Jensen:
  """Generalized Jensen-Shannon: bounded; alpha is the teacher's share of the mixture."""

  alpha: float = 0.5

  def __post_init__(self) -> None:
    _inside(self.alpha)


@dataclasses.dataclass(frozen=True)
class Skew:
  """KL to a mixture that holds alpha of the teacher: bounded by −log alpha."""

  alpha: float = 0.1

  def __post_init__(self) -> None:
    _inside(self.alpha)


Divergence = Forward | Reverse | Jensen | Skew


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The rest of the mass is one event."""


@dataclasses.dataclass(frozen=True)
class Ignored:
  """The rest of the mass is left out of both distributions."""


@dataclasses.dataclass(frozen=True)
class Distill:
  """`rest` matters to stored teachers alone."""

  divergence: Divergence = dataclasses.field(default_factory=Forward)
  temperature: float = 1.0
  rest: Bucket | Ignored = dataclasses.field(default_factory=Bucket)

  def __post_init__(self) -> None:
    if self.temperature <= 0:
      raise ValueError(f'temperature is {self.temperature}; it must be > 0')


def divergence(teacher_logp: jax.Array, student_logp: jax.Array, how: Divergence) -> jax.Array:
  """Divergence over the last axis of log-probabilities that sum to 1 there; −inf is mass 0."""
  match how:
    case Forward():
      return kl(teacher_logp, student_logp)
    case Reverse():
      return kl(student_logp, teacher_logp)
    case Jensen(alpha):
      mixed = mixture(teacher_logp, student_logp, alpha)
      return alpha * kl(teacher_logp, mixed) + (1 - alpha) * kl(student_logp, mixed)
    case Skew(alpha):
      return kl(teacher_logp, mixture(teacher_logp, student_logp, alpha))


def kl(p_logp: jax.Array, q_logp: jax.Array) -> jax.Array:
  """KL(p ‖ q) over the last axis; where p is 0 neither value nor gradient depends on q."""
  some = p_logp > -jnp.inf
  p_logp, q_logp = jnp.where(some, p_logp, 0), jnp.where(some, q_logp, 0)
  return jnp.where(some, jnp.exp(p_logp) * (p_logp - q_logp), 0).sum(axis=-1)


def mixture(teacher_logp: jax.Array, student_logp: jax.Array, alpha: float) -> jax.Array:
  """log(α t + (1−α) s)."""
  some = jnp.maximum(teacher_logp, student_logp) > -jnp.inf
  t, s = jnp.where(some, teacher_logp, 0), jnp.where(some, student_logp, 0)
  mixed = jnp.logaddexp(t + jnp.log(alpha), s + jnp.log1p(-alpha))
  return jnp.where(some, mixed, -jnp.inf)


def full(
  student_BLV: jax.Array, teacher_BLV: jax.Array, mask_BL: jax.Array, cfg: Distill
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) over the counted tokens, from logits of the whole vocabulary."""
  chex.assert_equal_shape([student_BLV, teacher_BLV])
  mask_BL = mask_BL.astype(bool)
  student_BLV, teacher_BLV = (
    jax.nn.log_softmax(jnp.where(mask_BL[..., None], z_BLV, 0) / cfg.temperature)
    for z_BLV in (student_BLV, jax.lax.stop_gradient(teacher_BLV))
  )
  loss_BL = cfg.temperature**2 * divergence(teacher_BLV, student_BLV, cfg.divergence)
  return masked(loss_BL, mask_BL), {'agreement': agreement(student_BLV, teacher_BLV, mask_BL)}


def stored(
  student_BLK: jax.Array,
  lse_BL: jax.Array,
  teacher_BLK: jax.Array,
  mask_BL: jax.Array,
  cfg: Distill,
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) from the student at the teacher's K ids and the teacher's log-probs.

  student_BLK: student logits divided by T; lse_BL: their log-sum-exp over the vocabulary (with
  log-probabilities in place of logits, 0). teacher_BLK: log-probabilities at T; −inf fills a
  position up that has fewer than K. The ids of a position differ from each other. `agreement`: the
  likeliest of the K is the same to both; what the student would rather say beside them is unseen.
  """
  chex.assert_equal_shape([student_BLK, teacher_BLK])
  mask_BL = mask_BL.astype(bool)
  # A lone certain event where nothing counts: no NaN can come from there.
  student_BLK = jnp.where(mask_BL[..., None], student_BLK - lse_BL[..., None], 0)
  some_BLK = mask_BL[..., None] & (teacher_BLK > -jnp.inf)
  student_BLK, teacher_BLK = (
    jnp.where(some_BLK, x_BLK, -jnp.inf)
    for x_BLK in (student_BLK, jax.lax.stop_gradient(teacher_BLK))
  )
  metrics = {
    'teacher_mass': masked(jnp.exp(teacher_BLK).sum(axis=-1), mask_BL),
    'student_mass': masked(jnp.exp(student_BLK).sum(axis=-1), mask_BL),
    'agreement': agreement(student_BLK, teacher_BLK, mask_BL),
  }
  student_BLK, teacher_BLK = (complete(x, cfg.rest) for x in (student_BLK, teacher_BLK))
  loss_BL = cfg.temperature**2 * divergence(teacher_BLK, student_BLK, cfg.divergence)
  return masked(loss_BL, mask_BL), metrics


def agreement(student_BLV: jax.Array, teacher_BLV: jax.Array, mask_BL: jax.Array) -> Mean:
  """Counted tokens whose likeliest next one is the same to both."""
  same_BL = student_BLV.argmax(axis=-1) == teacher_BLV.argmax(axis=-1)
  return masked(same_BL.astype(student_BLV.dtype), mask_BL)


def complete(logp_BLK: jax.Array, rest: Bucket | Ignored) -> jax.Array:
  """Log-probabilities that sum to 1: with the bucket as entry K+1, or scaled up."""
  some_BL1 = (logp_BLK > -jnp.inf).any(axis=-1, keepdims=True)
  safe_BLK = jnp.where(some_BL1, logp_BLK, -jnp.log(logp_BLK.shape[-1]))
  total_BL1 = jax.nn.logsumexp(safe_BLK, axis=-1, keepdims=True)
  match rest:
    case Bucket():
      # Rounding may bring the total to 1 or above it: the bucket keeps a mass of one rounding.
      inside_BL1 = jnp.minimum(total_BL1, -jnp.finfo(logp_BLK.dtype).eps)
      bucket_BL1 = jnp.where(some_BL1, jnp.log(-jnp.expm1(inside_BL1)), 0)
      return jnp.concatenate([logp_BLK, bucket_BL1], axis=-1)
    case Ignored():
      return jnp.where(some_BL1, logp_BLK - total_BL1, safe_BLK)


def hidden(
  student_BLD: jax.Array, teacher_BLE: jax.Array, projection_DE: jax.Array, mask_BL: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
  """((sum, weight), metrics) of one pair of layers; `unexplained` is the error over the signal."""
  mask_BL = mask_BL.astype(bool)
  student_BLD = jnp.where(mask_BL[..., None], student_BLD, 0)
  teacher_BLE = jnp.where(mask_BL[..., None], jax.lax.stop_gradient(teacher_BLE), 0)
  guess_BLE = jnp.einsum('BLD,DE->BLE', student_BLD, projection_DE)
  chex.assert_equal_shape([guess_BLE, teacher_BLE])
  error = masked(jnp.square(guess_BLE - teacher_BLE).mean(axis=-1), mask_BL)
  return error, {'unexplained': (error[0], jnp.square(teacher_BLE).mean(axis=-1).sum())}


def _inside(alpha: float) -> None:
  """ValueError unless 0 < alpha < 1."""
  if not 0 < alpha < 1:
    raise ValueError(f'alpha is {alpha}; it must lie in (0, 1): use Forward or Reverse at the ends')
