"""A jitted function for one set of shapes that says when it compiles."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

Announce = Callable[[str], AbstractContextManager]


def silent(what: str) -> AbstractContextManager:
  """Announces nothing."""
  del what
  return contextlib.nullcontext()


class Program:
  """Compiles `f` at its first call, inside `announce(what)`; other shapes later are an error.

  Compiling ahead of the call keeps compile time out of step time, and a recompile cannot pass
  unseen.
  """

  def __init__(self, what: str, f: Callable, announce: Announce = silent, **options: Any):
    self.what, self._jitted, self._announce = what, jax.jit(f, **options), announce
    self._compiled: Any = None

  def __call__(self, *args: Any) -> Any:
    if self._compiled is None:
      with self._announce(self.what):
        self._compiled = self._jitted.lower(*args).compile()
    return self._compiled(*args)
