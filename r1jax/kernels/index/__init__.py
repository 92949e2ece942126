"""The lightning indexer: which keys a query is to attend to, and how the indexer learns it.

    I_ts = Σ_j w_tj ReLU(q_tj · k_s)          2·B·L·M·J·I flops
    loss = Σ_t KL(p_t ‖ softmax I_t),  p_t = attention probabilities, the mean over heads

J small heads of width I share one key a token. A query sees the keys of its segment up to its own
index; `top_k` takes the best of them. `kl_dense` compares over all that is seen (warm-up, while the
model attends to everything), `kl_selected` over the chosen ones. The gradient goes into the
indexer's arrays alone: p is a constant, whatever it was computed from.

Queries go through in chunks, by default as measured (sizes.py) or by a rule: memory O(chunk · M),
never L × M (DeepSeek-V3.2, arXiv 2512.02556).

On a mesh rows and queries are split as in sharding/rules.py, all keys of its rows on each device.
"""

import functools
from collections.abc import Callable

import jax

from r1jax.kernels import sizes
from r1jax.kernels.attention.lists import Tokens
from r1jax.kernels.chunks import vary_like
from r1jax.kernels.index import reference, xla
from r1jax.kernels.platform import resolve
from r1jax.sharding import rules

KNOWN = ('xla', 'reference')


def top_k(
  q_BLJI: jax.Array,
  k_BMI: jax.Array,
  w_BLJ: jax.Array,
  queries: Tokens,
  keys: Tokens,
  k: int,
  chunk: int | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """ids_BLA: places of the k seen keys with the highest I, best first, then −1. No gradient."""
  check(q_BLJI, k_BMI, w_BLJ, queries, keys)
  q_BLJI, k_BMI, w_BLJ = jax.lax.stop_gradient((q_BLJI, k_BMI, w_BLJ))
  if resolve(implementation, {'*': 'xla'}, KNOWN) == 'reference':
    return reference.top_k(q_BLJI, k_BMI, w_BLJ, queries, keys, k)

  chunk = chunk or sizes.chunk(256, 'index/top_k', length=k_BMI.shape[1])

  def run(by_query: tuple, by_key: tuple) -> jax.Array:
    (q, w, queries), (ki, keys) = by_query, by_key
    return xla.top_k(q, ki, w, queries, keys, k, chunk)

  return on_shards(run, (q_BLJI, w_BLJ, queries), (k_BMI, keys))


def kl_dense(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  scale: float,
  q_BLJI: jax.Array,
  k_BMI: jax.Array,
  w_BLJ: jax.Array,
  queries: Tokens,
  keys: Tokens,
  chunk: int | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(Σ_t KL, tokens that see something) over all seen keys; q, k, scale are the attention's own.

  Costs 2·B·L·M·(N·H + J·I) flops, with the gradient 4·B·L·M·J·I more, both in the forward pass.
  """
  check(q_BLJI, k_BMI, w_BLJ, queries, keys)
  more = {'heads': q_BLNH.shape[2], 'length': k_BMI.shape[1]}
  chunk = chunk or sizes.chunk(128, 'index/kl_dense', **more)
  by_query, by_key = (q_BLNH, q_BLJI, w_BLJ, queries), (k_BMKH, k_BMI, keys)
  return _kl(scale, chunk, implementation, by_query, by_key)


def kl_selected(
  q_BLNH: jax.Array,
  k_BMKH: jax.Array,
  scale: float,
  q_BLJI: jax.Array,
  k_BMI: jax.Array,
  w_BLJ: jax.Array,
  queries: Tokens,
  keys: Tokens,
  ids_BLA: jax.Array,
  chunk: int | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same where p and softmax I live on the selected keys only; −1 is no key, none comes twice.

  Costs 2·B·L·A·(N·H + J·I) flops; memory O(chunk · A · (K·H + N)).
  """
  check(q_BLJI, k_BMI, w_BLJ, queries, keys)
  more = {'heads': q_BLNH.shape[2], 'places': ids_BLA.shape[2]}
  chunk = chunk or sizes.chunk(16, 'index/kl_selected', **more)
  by_query, by_key = (q_BLNH, q_BLJI, w_BLJ, queries, ids_BLA), (k_BMKH, k_BMI, keys)
  return _kl(scale, chunk, implementation, by_query, by_key)


def _kl(scale, chunk, implementation, by_query: tuple, by_key: tuple):
  name = resolve(implementation, {'*': 'xla'}, KNOWN)

  def run(by_query: tuple, by_key: tuple, axes: tuple[str, ...] = ()) -> tuple:
    (q, qi, w, queries, *ids), (k, ki, keys) = by_query, by_key
    given = (q, k), (qi, ki, w), queries, keys, *(ids or [None])
    return jax.lax.psum(xla.kl((scale, chunk), *given), axes)

  if name == 'reference':
    (q, qi, w, queries, *ids), (k, ki, keys) = by_query, by_key
    return reference.kl((q, k), scale, (qi, ki, w), queries, keys, *ids)
  return on_shards(run, by_query, by_key, summed=True)


def on_shards(
  run: Callable, by_query: tuple, by_key: tuple, summed: bool = False
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """run(by_query, by_key) on each device's rows and queries; `summed` over all of them.

  run takes as `axes` the mesh axes to sum over.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(by_query, by_key)
  split = rules.fitting(by_query[0].shape[:2], ('batch', 'length'), mesh)
  axes = tuple(a for e in split if e for a in ((e,) if isinstance(e, str) else e))
  if summed:
    run = functools.partial(run, axes=axes)

  def local(by_query: tuple, by_key: tuple):
    return run(by_query, vary_like(by_key, by_query))

  keys = jax.P(split[0])
  out = jax.P() if summed else split
  return jax.shard_map(local, in_specs=(split, keys), out_specs=out)(by_query, by_key)


def check(
  q_BLJI: jax.Array, k_BMI: jax.Array, w_BLJ: jax.Array, queries: Tokens, keys: Tokens
) -> None:
  """Shapes of the indexer's arrays that fit each other."""
  (B, L, J, I), M = q_BLJI.shape, k_BMI.shape[1]
  wanted = {
    'k_BMI': (k_BMI.shape, (B, M, I)),
    'w_BLJ': (w_BLJ.shape, (B, L, J)),
    'queries': (queries.segments_BM.shape, (B, L)),
    'keys': (keys.segments_BM.shape, (B, M)),
  }
  for name, (given, expected) in wanted.items():
    if given != expected:
      raise ValueError(f'{name} is {given}, {expected} expected beside q_BLJI {q_BLJI.shape}')
