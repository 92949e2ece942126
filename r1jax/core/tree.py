"""Trees with names: a leaf's path is its keys joined by slashes, 'run0/block0/attention/kv_down'.

A layered model's params are {'run0': {'block0': leaves, ...}, ...}. A run is (period, repeats):
`period` different blocks, each stacked over `repeats` along its leaves' leading axis, so that layer
`start + r·period + j` is row r of 'block{j}'. `restack` moves weights between two tables of runs
over the same layers: a change of one layer's pattern orphans no weights. Works on arrays, numpy
arrays and tracers; names, counts and bytes also on ShapeDtypeStructs. restack copies each leaf
once.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Runs = tuple[tuple[int, int], ...]
Place = tuple[int, int, int]


def name(path: tuple[Any, ...]) -> str:
  """A key path as text."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def paths(tree: Tree) -> list[str]:
  """The names of all leaves, in the order of jax.tree.leaves."""
  return [name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def flatten_named(tree: Tree) -> dict[str, Any]:
  """Leaves by name."""
  names, leaves = paths(tree), jax.tree.leaves(tree)
  named = dict(zip(names, leaves))
  if len(named) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"two leaves are called '{twice}'; rename a key that holds a slash")
  return named


def map_named(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
  """The tree of f(path, leaf, *leaves of rest)."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(name(path), *leaves), tree, *rest)


def match(pattern: str, path: str) -> bool:
  """Whether the regular expression matches the whole path."""
  return re.fullmatch(pattern, path) is not None


def split(tree: Tree, predicate: Callable[[str, Any], bool]) -> tuple[Tree, Tree]:
  """(selected, rest): the tree twice, None where the other has the leaf; jax.grad sees no None."""
  mine = map_named(lambda path, leaf: bool(predicate(path, leaf)), tree)
  selected = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mine)
  rest = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mine)
  return selected, rest


def merge(a: Tree, b: Tree) -> Tree:
  """The inverse of split: at every place the leaf of the half that has one."""

  def pick(path, x, y):
    if x is not None and y is not None:
      raise ValueError(f"both halves hold '{name(path)}'; merge takes the two halves of one split")
    return y if x is None else x

  return jax.tree_util.tree_map_with_path(pick, a, b, is_leaf=lambda x: x is None)


def count(tree: Tree) -> int:
  """Number of elements."""
  return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def bytes_of(tree: Tree) -> int:
  """Bytes of all leaves, unpacked: an int4 counts one byte, as it does in a host array."""
  return sum(count(leaf) * jnp.result_type(leaf).itemsize for leaf in jax.tree.leaves(tree))


def places(runs: Runs) -> list[Place]:
  """(run, block, row) of every layer, in order of depth."""
  return [
    (i, j, r)
    for i, (period, repeats) in enumerate(runs)
    for r in range(repeats)
    for j in range(period)
  ]


def layer(tree: Mapping[str, Tree], runs: Runs, index: int) -> Tree:
  """The params of one layer, without the stacking axis; a negative index counts from the end."""
  _check(tree, runs)
  where = places(runs)
  if not -len(where) <= index < len(where):
    raise IndexError(f'layer {index} of a model of {len(where)} layers')
  return _row(tree, where[index])


def restack(tree: Mapping[str, Tree], old_runs: Runs, new_runs: Runs) -> dict[str, Tree]:
  """The same layers stacked by `new_runs`; keys other than run0, run1, … stay as they are."""
  _check(tree, old_runs)
  old, new = places(old_runs), places(new_runs)
  if len(old) != len(new):
    raise ValueError(
      f'{len(old)} layers in {old_runs} cannot become {len(new)} layers in {new_runs}'
    )
  source = dict(zip(new, old))
  out = {key: value for key, value in tree.items() if not match(r'run\d+', key)}
  for i, (period, repeats) in enumerate(new_runs):
    rows = {f'block{j}': [source[i, j, r] for r in range(repeats)] for j in range(period)}
    out[f'run{i}'] = {name: _stack(tree, where, old) for name, where in rows.items()}
  return out


def _row(tree: Mapping[str, Tree], place: Place) -> Tree:
  run, block, row = place
  return jax.tree.map(lambda leaf: leaf[row], tree[f'run{run}'][f'block{block}'])


def _stack(tree: Mapping[str, Tree], where: list[Place], old: list[Place]) -> Tree:
  rows = [_row(tree, place) for place in where]
  shapes = [{name: jnp.shape(leaf) for name, leaf in flatten_named(row).items()} for row in rows]
  for place, shape in zip(where, shapes):
    if shape != shapes[0]:
      odd = sorted(name for name, _ in shape.items() ^ shapes[0].items())
      first, other = old.index(where[0]), old.index(place)
      raise ValueError(
        f"layers {first} and {other} differ in '{odd[0]}'; one block stacks equal layers only"
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _check(tree: Mapping[str, Tree], runs: Runs) -> None:
  """The tree holds exactly the blocks that the table names, each stacked over its repeats."""
  given = {f'{run}/{block}' for run in tree if match(r'run\d+', run) for block in tree[run]}
  expected = {
    f'run{i}/block{j}': repeats for i, (period, repeats) in enumerate(runs) for j in range(period)
  }
  if given != expected.keys():
    raise ValueError(
      f'params hold {sorted(given)}, the table of runs {runs} names {sorted(expected)}'
    )
  for name, repeats in expected.items():
    run, block = name.split('/')
    for path, leaf in flatten_named(tree[run][block]).items():
      if np.shape(leaf)[:1] != (repeats,):
        raise ValueError(
          f'{name}/{path} has shape {np.shape(leaf)}, runs {runs} want a leading axis of {repeats}'
        )
