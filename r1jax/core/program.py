"""A jitted function for one set of shapes, or a known few, that says when and why it compiles.

Compiling ahead of the call keeps compile time out of step time, and no recompile passes unseen: one
within `traces` is announced with what changed, one beyond them is an error, and
`chex.assert_max_traces` guards the function itself. Arguments that lie under another sharding than
the compiled one are refused by jax (a ValueError that names both); those on the host, or on a
device without being committed to it, are placed.

Cost: a call with the last shapes is the compiled call alone, for that one checks its arguments
itself. Asking first whether they changed would take 45 µs for 100 leaves; asking only when it has
refused them takes 0.3 to 1.5 ms, but only then (jax 0.10.2, two-core CPU).
"""

import contextlib
import inspect
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import chex
import jax

from r1jax.core import tree

Announce = Callable[[str], AbstractContextManager]
Key = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]  # structure, (shape, dtype) of the leaves
SHOWN = 3  # leaves named when the arguments changed


def silent(what: str) -> AbstractContextManager:
  """Announces nothing."""
  del what
  return contextlib.nullcontext()


class Program:
  """Compiles `f` at its first call, inside `announce(what)`; at most `traces` times in all.

  Shapes, types or a structure that no call had before compile once more, inside `announce('what
  again: …')`, or are a RuntimeError when `traces` programs exist.
  """

  def __init__(
    self, what: str, f: Callable, announce: Announce = silent, traces: int = 1, **options: Any
  ):
    self.what, self.traces, self._announce = what, traces, announce
    self._signature = inspect.signature(f)
    self._jitted = jax.jit(guarded(f, what, traces), **options)
    self._programs: dict[Key, Any] = {}
    self._last: Key | None = None

  def __call__(self, *args: Any) -> Any:
    if self._last is not None:
      try:
        return self._programs[self._last](*args)
      except TypeError:  # the compiled program's word for other shapes, types or structure
        if self._key(args) == self._last:
          raise
    self._choose(args)
    return self._programs[self._last](*args)

  @property
  def compiled(self) -> int:
    """Programs so far."""
    return len(self._programs)

  def _choose(self, args: tuple) -> None:
    """Turns to the program for these arguments: one made before, or a new one."""
    key = self._key(args)
    if key not in self._programs:
      what = f'{self.what} again: {self._changed(key)}' if self._programs else self.what
      if len(self._programs) == self.traces:
        raise RuntimeError(
          f'{what}; the limit is traces={self.traces}: pad to shapes seen before, or raise it'
        )
      with self._announce(what):
        self._programs[key] = self._jitted.lower(*args).compile()
    self._last = key

  def _key(self, args: tuple) -> Key:
    leaves, structure = jax.tree.flatten(self._signature.bind(*args).arguments)
    return structure, tuple((t.shape, t.dtype) for t in map(jax.typeof, leaves))

  def _changed(self, key: Key) -> str:
    """'batch/tokens_BL int32[8, 128] -> int32[16, 128]' of the first leaves that differ."""
    old, new = described(self._last), described(key)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    told = [f'{n} {old.get(n, "absent")} -> {new.get(n, "absent")}' for n in names[:SHOWN]]
    if len(names) > SHOWN:
      told.append(f'{len(names) - SHOWN} more')
    return ', '.join(told) or 'the containers of the same leaves'


def described(key: Key) -> dict[str, str]:
  """Path -> 'int32[8, 128]' of the arguments that a key stands for."""
  structure, types = key
  paths = tree.paths(jax.tree.unflatten(structure, range(len(types))))
  return {p: f'{dtype}[{", ".join(map(str, shape))}]' for p, (shape, dtype) in zip(paths, types)}


def guarded(f: Callable, what: str, traces: int) -> Callable:
  """`f` under the name `what`, which may be traced `traces` times.

  Chex counts by name, source and call stack, which two programs of one loop share: each gets a name
  of its own while chex looks. The name that stays must not vary, for compiled programs are cached
  under it.
  """

  def traced(*args: Any) -> Any:
    return f(*args)

  traced.__name__, traced.__signature__ = f'{what} {uuid.uuid4()}', inspect.signature(f)
  counted = chex.assert_max_traces(traced, traces)
  counted.__name__ = what
  return counted
