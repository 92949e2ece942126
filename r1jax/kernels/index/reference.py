"""The lightning indexer as a specification: L×M scores of all heads at once."""

import jax
import jax.numpy as jnp
from einops import repeat

from r1jax.kernels.attention.lists import Band, Tokens
from r1jax.kernels.attention.reference import masked_softmax, sees
from r1jax.kernels.platform import sums

Target = tuple[jax.Array, jax.Array]  # q_BLNH, k_BMKH of the attention
Indexer = tuple[jax.Array, jax.Array, jax.Array]  # q_BLJI, k_BMI, w_BLJ


def scores(q_BLJI: jax.Array, k_BMI: jax.Array, w_BLJ: jax.Array) -> jax.Array:
  """I_BLM = Σ_j w ReLU(q · k)."""
  z_BLJM = jnp.einsum('BLJI,BMI->BLJM', q_BLJI, k_BMI, preferred_element_type=sums(q_BLJI))
  return jnp.einsum('BLJM,BLJ->BLM', jax.nn.relu(z_BLJM), w_BLJ)


def top_k(
  q_BLJI: jax.Array, k_BMI: jax.Array, w_BLJ: jax.Array, queries: Tokens, keys: Tokens, k: int
) -> jax.Array:
  """ids_BLA of the k best keys seen, best first, then −1."""
  return best(scores(q_BLJI, k_BMI, w_BLJ), sees(queries, keys, Band()), k)


def best(s_BLM: jax.Array, seen_BLM: jax.Array, k: int) -> jax.Array:
  """Places of the k highest scores seen, highest first, then −1."""
  few = min(k, s_BLM.shape[-1])
  top_BLA, ids_BLA = jax.lax.top_k(jnp.where(seen_BLM, s_BLM, -jnp.inf), few)
  ids_BLA = jnp.where(top_BLA == -jnp.inf, -1, ids_BLA)
  return jnp.pad(ids_BLA, ((0, 0), (0, 0), (0, k - few)), constant_values=-1)


def kl(
  target: Target,
  scale: float,
  indexer: Indexer,
  queries: Tokens,
  keys: Tokens,
  ids_BLA: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(Σ KL(p ‖ softmax I), tokens that see something) over seen keys, of them the selected ones."""
  q_BLNH, k_BMKH = target
  seen_BLM = sees(queries, keys, Band())
  if ids_BLA is not None:
    seen_BLM &= (ids_BLA[..., None] == jnp.arange(k_BMKH.shape[1])).any(-2)
  k_BMNH = repeat(k_BMKH, 'B M K H -> B M (K G) H', G=q_BLNH.shape[2] // k_BMKH.shape[2])
  s_BLNM = jnp.einsum('BLNH,BMNH->BLNM', q_BLNH, k_BMNH, preferred_element_type=sums(q_BLNH))
  p_BLM = masked_softmax(scale * s_BLNM, seen_BLM[:, :, None]).mean(2)
  kl_BL, _ = divergence(jax.lax.stop_gradient(p_BLM), scores(*indexer), seen_BLM)
  return kl_BL.sum(), seen_BLM.any(-1).sum().astype(kl_BL.dtype)


def divergence(
  p_BLM: jax.Array, s_BLM: jax.Array, seen_BLM: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """KL(p ‖ softmax s) of each query over what it sees, 0 over nothing; and its gradient in s."""
  s_BLM = jnp.where(seen_BLM, s_BLM, jnp.finfo(s_BLM.dtype).min)
  log_BLM = jnp.where(seen_BLM, jax.nn.log_softmax(s_BLM), 0)
  kl_BL = jnp.sum(jax.scipy.special.xlogy(p_BLM, p_BLM) - p_BLM * log_BLM, -1)
  return kl_BL, jnp.where(seen_BLM, jnp.exp(log_BLM) - p_BLM, 0)
