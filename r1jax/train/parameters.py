"""Parameters out of a checkpoint, whatever dtype they were stored in.

A trainer needs fp32 masters. Who only computes with them keeps what is stored, except that weights
narrower than the activations are widened once here rather than at every use: the numbers of each
matmul are the same.

A LoRA checkpoint holds adapters; their base lies where its `init` says. Who computes gets both
(`Adapted` leaves, as in training), who trains them on gets their sum.
"""

import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.algos import lora
from r1jax.algos.lora import LoRA
from r1jax.checkpoint import leaves
from r1jax.checkpoint.store import Store, resolve
from r1jax.core import config, tree
from r1jax.core.errors import UserError
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place


def masters(store: Store, step: int, cfg: ModelConfig, mesh: jax.sharding.Mesh | None) -> Any:
  """fp32 parameters to train, on the mesh."""
  return _cast(lora.merge(stored(store, step, cfg, mesh)), lambda _: jnp.dtype('float32'))


def weights(
  store: Store,
  step: int,
  cfg: ModelConfig,
  mesh: jax.sharding.Mesh | None,
  heads: Mapping[str, tuple[nn.Module, tuple]] = types.MappingProxyType({}),
) -> Any:
  """Parameters to compute with, at least as wide as the activations."""
  return _cast(
    stored(store, step, cfg, mesh, heads),
    lambda given: jnp.promote_types(given, jnp.dtype(cfg.dtype)),
  )


def stored(
  store: Store,
  step: int,
  cfg: ModelConfig,
  mesh: jax.sharding.Mesh | None,
  heads: Mapping[str, tuple[nn.Module, tuple]] = types.MappingProxyType({}),
) -> Any:
  """Parameters as they are in the checkpoint, on those of its base if it holds adapters.

  heads: what was trained beside the model and is wanted too, each with the inputs of its init.
  """
  held, said = store.describe(step), store.meta(step)['experiment']
  boxed = place.abstract(Transformer(cfg), dummy_inputs(cfg))
  base = None
  if said.get('lora'):
    spec = config.from_dict(LoRA, {k: v for k, v in said['lora'].items() if k != 'type'})
    base = frozen(store.meta(step), cfg, spec, mesh)
    boxed = lora.boxed(boxed, spec)
  beside = {name: place.abstract(module, *inputs) for name, (module, inputs) in heads.items()}

  def typed(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    found = held.get(f'params/{path}')
    dtype = leaves.parse(found).dtype if found else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  wanted, own = (
    tree.map_named(typed, place.templates(mesh, some)) if some else {} for some in (boxed, beside)
  )
  wanted = wanted if base is None else lora.split(wanted)[0]
  got = store.restore({'params': wanted | own}, step, partial=True)['params']
  own = {name: got.pop(name) for name in own}
  return (got if base is None else tree.merge(got, base)) | own


def frozen(
  meta: dict[str, Any], cfg: ModelConfig, spec: LoRA, mesh: jax.sharding.Mesh | None
) -> Any:
  """The base of a LoRA checkpoint, None in place of the adapters; it must be the one trained on."""
  init = meta['experiment']['init']
  try:
    directory, step = resolve(init)
  except UserError as error:
    raise UserError(f'the base of the LoRA checkpoint: {error}') from error
  store = Store(directory)
  same_base(meta, store.identity(step))
  return lora.split(adapted(weights(store, step, cfg, mesh), spec, 0))[1]


def same_base(meta: dict[str, Any], there: str) -> None:
  """UserError unless the weights that lie at `init` are those that the adapters belong to."""
  if there != meta['base']:
    raise UserError(
      f'the adapters were trained on other weights (checksums {meta["base"]}) than lie at '
      f'{meta["experiment"]["init"]} now ({there}); put those back'
    )


def adapted(params: Any, spec: LoRA, seed: int) -> Any:
  """Plain parameters with fresh adapters on them; those of a LoRA checkpoint are merged first."""
  return lora.attach(lora.merge(params), spec, jax.random.key(seed))


def _cast(params: Any, dtype: Any) -> Any:
  """Leaf by leaf, so that what was stored goes as what is cast comes: never two whole trees."""
  flat, form = jax.tree.flatten(params)
  del params  # nor does the caller hold it
  for i, x in enumerate(flat):
    flat[i] = jax.block_until_ready(x.astype(dtype(x.dtype)))
  return jax.tree.unflatten(form, flat)
