"""Per-token KL estimators between the policy π and a reference, as terms of a loss.

With d = log π_ref − log π at a sampled token:

  k1        −d                   zero expected gradient on-policy: in a loss it does nothing
  k2        d²/2                 on-policy the gradient of KL(π ‖ π_ref)
  k3        e^d − 1 − d          unbiased value; on-policy the gradient of KL(π_ref ‖ π)
  unbiased  (π/π_old)·k3         value and gradient of KL(π ‖ π_ref) for samples of any π_old

k1 to k3: Schulman, "Approximating KL divergence" (2020); k3 in GRPO: DeepSeekMath, arXiv
2402.03300; the unbiased form with its differentiable ratio: DeepSeek-V3.2, arXiv 2512.02556. "The
gradient of KL" is, for a sequence, that of each token's conditional KL given its sampled prefix:
the effect of a token on the later prefixes is left out, as in all of these papers. Cost: O(B·L).
The reference and π_old are constants.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class K1:
  """log π − log π_ref; for comparison only, its expected gradient is zero."""


@dataclasses.dataclass(frozen=True)
class K2:
  """Half the squared log-ratio."""


@dataclasses.dataclass(frozen=True)
class K3:
  """GRPO's estimator as in the R1 paper; descends KL(π_ref ‖ π)."""


@dataclasses.dataclass(frozen=True)
class Unbiased:
  """V3.2's importance-weighted k3; descends KL(π ‖ π_ref), off-policy too."""


KL = K1 | K2 | K3 | Unbiased


def k1(logp_BL: jax.Array, ref_BL: jax.Array) -> jax.Array:
  """log π − log π_ref."""
  return logp_BL - jax.lax.stop_gradient(ref_BL)


def k2(logp_BL: jax.Array, ref_BL: jax.Array) -> jax.Array:
  """½ (log π − log π_ref)²."""
  return 0.5 * jnp.square(logp_BL - jax.lax.stop_gradient(ref_BL))


def k3(logp_BL: jax.Array, ref_BL: jax.Array) -> jax.Array:
  """π_ref/π − 1 − log(π_ref/π), never negative."""
  d_BL = jax.lax.stop_gradient(ref_BL) - logp_BL
  return jnp.expm1(d_BL) - d_BL


def unbiased(logp_BL: jax.Array, ref_BL: jax.Array, old_BL: jax.Array) -> jax.Array:
  """(π/π_old)·k3 with gradient through the ratio; the samples come from π_old."""
  ratio_BL = jnp.exp(logp_BL - jax.lax.stop_gradient(old_BL))
  return ratio_BL * k3(logp_BL, ref_BL)


def kl(spec: KL, logp_BL: jax.Array, ref_BL: jax.Array, old_BL: jax.Array) -> jax.Array:
  """The estimator that spec names; only Unbiased reads old_BL."""
  match spec:
    case K1():
      return k1(logp_BL, ref_BL)
    case K2():
      return k2(logp_BL, ref_BL)
    case K3():
      return k3(logp_BL, ref_BL)
    case Unbiased():
      return unbiased(logp_BL, ref_BL, old_BL)
