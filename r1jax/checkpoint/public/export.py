"""Our parameters as a public checkpoint: safetensors under public names, with config.json.

One public tensor at a time is put together and written: peak memory is that of the largest one,
whatever the number of layers.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.checkpoint.public import names
from r1jax.checkpoint.public.families import Public
from r1jax.checkpoint.public.layout import Index, Layout
from r1jax.checkpoint.public.safetensors import Writer, told
from r1jax.core import files
from r1jax.core.errors import UserError

Read = Callable[[str, Index], np.ndarray]


class Piece(NamedTuple):
  """What one leaf gives to a public tensor: its slice there, and how that lies."""

  path: str
  at: tuple[int, ...]
  layout: Layout


def pieces(public: Public) -> dict[str, list[Piece]]:
  """Every public tensor with the leaves that it is made of, in the order of the layers."""
  found: dict[str, list[Piece]] = {}
  for path, leaf in names.table(public.model, public.router_bias).items():
    for at, name in (leaf.names or {}).items():
      found.setdefault(name, []).append(Piece(path, at, leaf.layout))
  return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple:
  """Layers by number, experts by number."""
  return tuple(int(part) if part.isdecimal() else -1 for part in name.split('.')), name


def check(public: Public, leaves: Mapping[str, jax.ShapeDtypeStruct], read: Read) -> None:
  """The leaves are those of the model; what the architecture has no tensor for is zero."""
  table = names.table(public.model, public.router_bias)
  for path, leaf in table.items():
    if path not in leaves or tuple(leaves[path].shape) != leaf.shape:
      held = list(leaves[path].shape) if path in leaves else 'absent'
      raise UserError(f'{path} is {held} in the checkpoint, its config asks for {list(leaf.shape)}')
    if leaf.names is None and np.any(read(path, ())):
      raise UserError(
        f'{path} is not zero, and {public.architecture} has no tensor for it: the export would '
        'choose other experts; train with auxiliary.gamma=0, which leaves it at zero (the loss of '
        'auxiliary.balance evens the load)'
      )


def tensors(
  public: Public, leaves: Mapping[str, jax.ShapeDtypeStruct], dtype: np.dtype | None
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
  """Dtype and shape of what is written; dtype: of all, None: as the leaves are.

  The router's selection bias stays fp32, as published.
  """
  made = {}
  for name, parts in pieces(public).items():
    kept = name.endswith('e_score_correction_bias')
    kind = np.dtype('float32') if kept else dtype or leaves[parts[0].path].dtype
    made[name] = (np.dtype(kind), parts[0].layout.theirs)
  for copy, original in names.copies(public.model).items():
    if copy != 'lm_head.weight':  # a tied head is left out, as published
      made[copy] = made[original]
  return made


def write(
  public: Public,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  read: Read,
  folder: pathlib.Path,
  config: dict[str, Any],
  dtype: np.dtype | None = None,
  beside: Mapping[str, bytes] | None = None,
) -> Iterator[tuple[int, int]]:
  """Writes the folder, with the files `beside`; yields (bytes done, bytes total).

  config.json comes last: where it is, all is.
  """
  check(public, leaves, read)
  wanted, parts = tensors(public, leaves, dtype), pieces(public)
  originals = names.copies(public.model)
  total = sum(kind.itemsize * int(np.prod(shape)) for kind, shape in wanted.values())
  done = 0
  with Writer(folder, wanted) as out:
    for name, (kind, shape) in wanted.items():
      array = np.empty(shape, kind)
      for piece in parts[originals.get(name, name)]:
        index = tuple(slice(i, i + 1) for i in piece.at)
        ours = read(piece.path, index)
        piece.layout.write(ours.reshape(ours.shape[len(piece.at) :]).astype(kind), array)
      out.write(name, array)
      done += array.nbytes
      yield done, total
  with told(f'{folder}'):
    for name, held in (beside or {}).items():
      (folder / name).write_bytes(held)
    files.write_json(folder / 'config.json', config)
