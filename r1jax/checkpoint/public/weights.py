"""Public weights under our names: any slice of any leaf, read from where it lies.

A stacked leaf has one public tensor a layer (and expert); only those that a slice needs are opened.
All that can be wrong with names and shapes is found before the first byte is read.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.checkpoint.public import names
from r1jax.checkpoint.public.families import Public
from r1jax.checkpoint.public.layout import Index
from r1jax.checkpoint.public.tensors import Tensors
from r1jax.core.errors import UserError

BUFFERS = ('.rotary_emb.inv_freq',)  # computed from the config; old checkpoints hold it
BLOCK = 1 << 26  # bytes compared at a time


class Weights:
  """Leaves of a model by path ('run1/block0/mlp/gate'), backed by public tensors."""

  def __init__(self, public: Public, tensors: Tensors):
    self.public, self.tensors = public, tensors
    self._table = names.table(public.model, public.router_bias)
    self._copies = names.copies(public.model)
    check(self._table, self._copies, tensors, public)
    self.leaves: Mapping[str, jax.ShapeDtypeStruct] = {
      path: jax.ShapeDtypeStruct(leaf.shape, self._dtype(leaf))
      for path, leaf in self._table.items()
    }

  def read(self, path: str, index: Index = ()) -> np.ndarray:
    """A slice of a leaf; missing trailing slices mean all."""
    leaf, want = self._table[path], self.leaves[path]
    index = tuple(index) + (slice(None),) * (len(want.shape) - len(index))
    shape = [len(range(*s.indices(n))) for s, n in zip(index, want.shape)]
    ranges = [range(*s.indices(n)) for s, n in zip(index, leaf.stack)]
    inner = index[len(leaf.stack) :]
    if leaf.names is None:
      return np.zeros(shape, want.dtype)

    def one(at: tuple[int, ...]) -> np.ndarray:
      name = leaf.names[at]
      return leaf.layout.read(lambda rows: self.tensors.read(name, rows), inner)

    if all(len(r) == 1 for r in ranges):  # no second copy of a single tensor
      return one(tuple(r[0] for r in ranges)).reshape(shape).astype(want.dtype, copy=False)
    made = np.empty(shape, want.dtype)
    for place, at in zip(np.ndindex(*map(len, ranges)), itertools.product(*ranges)):
      made[place] = one(at)
    return made

  def check_copies(self) -> None:
    """Tensors that must repeat others do; reads both, once."""
    for copy, original in self._copies.items():
      if copy not in self.tensors.table:
        continue
      shape, dtype, file = (
        getattr(self.tensors.table[copy], n) for n in ('shape', 'dtype', 'file')
      )
      rows = max(1, BLOCK // max(1, dtype.itemsize * int(np.prod(shape[1:]))))
      for start in range(0, shape[0], rows):
        at = (slice(start, min(start + rows, shape[0])),)
        if self.tensors.read(copy, at).tobytes() != self.tensors.read(original, at).tobytes():
          raise UserError(
            f'{copy} in {file} differs from {original}, which it must repeat: r1jax shares them'
          )

  def _dtype(self, leaf: names.Leaf) -> np.dtype:
    if leaf.names is None:
      return np.dtype('float32')
    kinds = {self.tensors.table[name].dtype for name in leaf.names.values()}
    return kinds.pop() if len(kinds) == 1 else np.dtype('float32')


def check(
  table: Mapping[str, names.Leaf], copies: Mapping[str, str], tensors: Tensors, public: Public
) -> None:
  """Every tensor is there, none is left over, all have the shape that the config asks for."""
  want = {
    name: leaf.layout.theirs for leaf in table.values() for name in (leaf.names or {}).values()
  }
  have = tensors.table
  optional = {copy: want[original] for copy, original in copies.items() if copy in have}
  where = f'; the files are {next(iter(have.values())).file} …' if have else ''
  missing = [name for name in want if name not in have]
  if missing:
    said = f'tensor {missing[0]} is missing (and {len(missing) - 1} more){where}; '
    if missing == [name for name in want if is_prediction(name, public)]:
      raise UserError(
        f'{said}the prediction module is not there at all: set num_nextn_predict_layers to 0 in '
        'config.json if the weights were published without it'
      )
    raise UserError(f'{said}config.json and weights must be of one model, completely downloaded')
  extra = [n for n in have if n not in want and n not in optional and not n.endswith(BUFFERS)]
  if extra:
    mend = 'check that both are of one model'
    module = f'model.layers.{len(public.model.layers)}.'
    if public.router_bias and not public.model.mtp and all(n.startswith(module) for n in extra):
      mend = 'these are a prediction module: set num_nextn_predict_layers to 1 in config.json'
    raise UserError(
      f'tensor {extra[0]} in {have[extra[0]].file} (and {len(extra) - 1} more) has no place in the '
      f'{public.architecture} that config.json describes; {mend}'
    )
  for name, shape in {**want, **optional}.items():
    if tuple(have[name].shape) != tuple(shape):
      raise UserError(
        f'tensor {name} in {have[name].file} has shape {list(have[name].shape)}, config.json asks '
        f'for {list(shape)}; check that both are of one model'
      )
    if have[name].dtype.kind not in 'fV' or have[name].dtype.itemsize < 2:
      raise UserError(
        f'tensor {name} in {have[name].file} holds {have[name].dtype}, a weight must be floating '
        'point; r1jax does not read this quantization'
      )


def is_prediction(name: str, public: Public) -> bool:
  """Whether a public tensor belongs to a multi-token-prediction module."""
  first = len(public.model.layers)
  return any(name.startswith(f'model.layers.{first + d}.') for d in range(len(public.model.mtp)))


def tree(leaves: Mapping[str, Any], make: Callable[[str], Any]) -> dict[str, Any]:
  """The nested parameters {run0: {block0: …}} with make(path) at each leaf."""
  made: dict[str, Any] = {}
  for path in leaves:
    *folders, last = path.split('/')
    at = made
    for name in folders:
      at = at.setdefault(name, {})
    at[last] = make(path)
  return made
