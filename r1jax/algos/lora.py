"""Low-rank adapters: a frozen model learns by a thin pair of matrices beside each of its weights.

    W = W0 + alpha/rank · down·up        up = 0 at first, so that the function is the base's

Hu et al., arXiv 2106.09685; `down` begins as in their code (Kaiming uniform: ±1/√in), where the
paper says Gaussian. A weight of in × out numbers trains rank·(in + out) of them: gradients and both
moments of Adam shrink by as much. A product of T rows takes 2·T·rank·(in + out) flops more forward
and twice that backward, and none for the gradient of W0: a third of a full step's. Adapters are
fp32 whatever the base is.

`attach` makes tree leaves of type core.qarray.Adapted, with which the model computes everywhere; to
train, differentiate by the first half of `split`; to export, `merge`. Vectors (scales of norms,
biases) have no pair. Of routed experts each has its own.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta

from r1jax.core import prng, tree
from r1jax.core.errors import UserError
from r1jax.core.qarray import Adapted, dense, factors

BLOCKS = r'.*/(attention|mlp|mlp/shared)/\w+|.*/project'  # all but embedding, head and routers


@dataclasses.dataclass(frozen=True)
class LoRA:
  """alpha / rank scales the product; targets is a regular expression of whole paths of weights."""

  rank: int = 16
  alpha: float = 32.0
  targets: str = BLOCKS

  def __post_init__(self) -> None:
    if self.rank < 1 or self.alpha <= 0:
      raise ValueError(f'rank={self.rank}, alpha={self.alpha}; both must be positive')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
        f"targets '{self.targets}' is no regular expression ({error}); one of whole paths is "
        "expected, such as '.*/attention/.*'"
      ) from None


class Layout(NamedTuple):
  """How many axes of a weight stack matrices, and how many after those are inputs of one."""

  lead: int
  inputs: int


MATRIX = Layout(0, 1)
LAYOUTS = (  # path, axes without that of a run's layers; the first that fits, MATRIX if none does
  (r'.*attention/out', 3, Layout(0, 2)),  # [N, H, D]
  (r'.*mlp/(gate|up|down)', 3, Layout(1, 1)),  # [E, D, F] or [E, F, D]: routed experts
)


def layout(path: str, ndim: int) -> Layout | None:
  """Of the weight at this path; None where it is a vector (of each head or layer, perhaps)."""
  layers = int(tree.match(r'(.*/)?run\d+/.*', path))
  if ndim - layers < 2 or tree.match(r'.*(scale|bias)', path):
    return None
  fits = (l for pattern, axes, l in LAYOUTS if axes == ndim - layers and tree.match(pattern, path))
  lead, inputs = next(fits, MATRIX)
  return Layout(layers + lead, inputs)


def chosen(ndims: Mapping[str, int], spec: LoRA) -> dict[str, Layout]:
  """The weights that get adapters, of those with these paths and numbers of axes."""
  if held := [path for path in ndims if is_adapter(path)]:
    raise UserError(f"params have adapters already ('{held[0]}'); merge them before new ones")
  matrices = {path: l for path, n in ndims.items() if (l := layout(path, n))}
  found = {path: l for path, l in matrices.items() if tree.match(spec.targets, path)}
  if not found:
    known = dict.fromkeys(re.sub(r'\d+', '*', path) for path in matrices)
    raise UserError(
      f"lora.targets '{spec.targets}' matches the whole path of no matrix; there are "
      f'{", ".join(known)} (* is a number)'
    )
  return found


def attach(params: Any, spec: LoRA, key: jax.Array) -> Any:
  """Params with fresh adapters; they lie on the mesh as their base does, the rank on no axis.

  The base's arrays are those given. A weight's numbers follow from key and path alone.
  """
  named = tree.flatten_named(params)
  layouts = chosen({path: jnp.ndim(w) for path, w in named.items()}, spec)

  def fresh(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    folded = {path: prng.fold(key, zlib.crc32(path.encode())) for path in layouts}
    return {p: _pair(folded[p], named[p].shape, l, spec.rank) for p, l in layouts.items()}

  places = {path: _places(named[path], l) for path, l in layouts.items()}
  pairs = jax.jit(fresh, out_shardings=places)(key)
  scale = spec.alpha / spec.rank
  return tree.map_named(
    lambda path, w: Adapted(w, *pairs[path], scale) if path in pairs else w, params
  )


def _pair(
  key: jax.Array, shape: tuple[int, ...], l: Layout, rank: int
) -> tuple[jax.Array, jax.Array]:
  """down and up of a weight of this shape."""
  down, up = factors(shape, *l, rank)
  bound = math.prod(shape[l.lead : l.lead + l.inputs]) ** -0.5
  return jax.random.uniform(key, down, jnp.float32, -bound, bound), jnp.zeros(up, jnp.float32)


def _places(w: jax.Array, l: Layout) -> tuple:
  """Shardings of down and up for a base that lies on a mesh; Nones for any other."""
  where = getattr(w, 'sharding', None)
  if not isinstance(where, jax.sharding.NamedSharding):
    return None, None
  axes = (*where.spec, *(None,) * (w.ndim - len(where.spec)))
  return tuple(jax.sharding.NamedSharding(where.mesh, jax.P(*a)) for a in factors(axes, *l, None))


def boxed(abstract: Any, spec: LoRA) -> Any:
  """Abstract params in Linen's boxes with adapters in boxes: for place.shardings and templates."""
  is_box = lambda x: isinstance(x, meta.AxisMetadata)
  flat, structure = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=is_box)
  named = {tree.name(path): box for path, box in flat}
  layouts = chosen({path: box.unbox().ndim for path, box in named.items()}, spec)

  def one(path: str, box: Any) -> Any:
    if path not in layouts:
      return box
    pair = zip(
      factors(box.unbox().shape, *layouts[path], spec.rank),
      factors(box.names, *layouts[path], None),
    )
    boxes = (box.replace(value=jax.ShapeDtypeStruct(s, jnp.float32), names=n) for s, n in pair)
    return Adapted(box, *boxes, spec.alpha / spec.rank)

  return structure.unflatten([one(path, box) for path, box in named.items()])


def is_adapter(path: str) -> bool:
  """Whether the leaf is a down or up of a pair, and not a weight of a feed-forward so called."""
  return tree.match(r'(.*/)?(?!(mlp|shared)/)\w+/(down|up)', path)


def split(params: Any) -> tuple[Any, Any]:
  """(adapters, all the rest), each with None where the other has the leaf; tree.merge joins."""
  return tree.split(params, lambda path, _: is_adapter(path))


def merge(params: Any) -> Any:
  """Plain params of the same function; merged weights are fp32, whatever the base was kept in."""
  return jax.tree.map(dense, params, is_leaf=lambda w: isinstance(w, Adapted))


def summary(params: Any) -> str:
  """'2.5 % of 1.27 M parameters train'; shapes alone will do."""
  adapters, rest = (tree.count(half) for half in split(params))
  total = adapters + rest
  size = f'{total / 1e9:.3g} B' if total >= 1e9 else f'{total / 1e6:.3g} M'
  return f'{100 * adapters / total:.2g} % of {size} parameters train'
