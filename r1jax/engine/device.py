"""The device's side of continuous batching: weights, pages, and the compiled steps over them.

Each kind of step and shape is one compiled program. Host arrays travel as one (inputs.pack); on a
mesh rows are split, numbers known to all. Pages are made when a step first needs them; the memory
of pages is donated from step to step.
"""

import collections
import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from r1jax.core.program import Announce, Program
from r1jax.engine import inputs
from r1jax.engine.drafts import Drafting, Modules
from r1jax.engine.plan import Config
from r1jax.engine.sampling import Kinds
from r1jax.engine.speculative import module_caches
from r1jax.engine.steps import Memory
from r1jax.model import cache as caches
from r1jax.model.cache import Stored
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.sharding import place, processes


class Device:
  """Weights, pages and programs of one engine; `seconds` of calling them and of waiting."""

  def __init__(
    self,
    cfg: ModelConfig,
    config: Config,
    mesh: jax.sharding.Mesh | None,
    stored: Stored | None,
    drafting: Drafting | None,
    announce: Announce,
  ):
    self.cfg, self.config, self.mesh, self.stored = cfg, config, mesh, stored
    self.drafting, self._announce = drafting, announce
    self.seconds: collections.Counter[str] = collections.Counter()
    self.params: Any = None
    self._memory: Memory | None = None
    self._programs: dict[tuple, Program] = {}

  @property
  def compiled(self) -> int:
    """Programs so far."""
    return len(self._programs)

  @property
  def busy(self) -> float:
    """Seconds in which compiled steps were called or waited for."""
    return sum(self.seconds[name] for name in ('call', 'prefill', 'decode'))

  def load(self, params: Any) -> None:
    """Takes these weights as they lie, or moves them to where the mesh wants them."""
    self.params = place.onto(self.mesh, self._boxed, params)

  def lose(self) -> None:
    """The pages are gone; the next step has blank ones."""
    self._memory = None

  def release(self) -> None:
    """Gives the memory of pages and weights back. Compiled steps stay."""
    self._memory = self.params = None

  def call(self, what: str, f: Callable, kinds: Kinds, told: tuple, **known: Any) -> Any:
    """Starts a step on what it is told; gives what it made, which may still be computed."""
    if self._memory is None:
      self._memory = self._empty()
    packed, how = inputs.pack(told)
    name = f.__name__, kinds, how, len(packed.bits_BX)
    if name not in self._programs:
      f = functools.partial(f, cfg=self.cfg, kinds=kinds, drafting=self.drafting, **known)
      step = lambda params, memory, packed: f(params, memory, *inputs.unpack(packed, how))
      self._programs[name] = Program(what, step, self._announce, donate_argnums=(1,))
    if self.mesh is not None:
      rows = place.rows(self.mesh, packed.bits_BX)
      packed = inputs.Packed(rows, place.put(self.mesh, packed.scalars))
    began = time.perf_counter()
    self._memory, made = self._programs[name](self.params, self._memory, packed)
    self.seconds['call'] += time.perf_counter() - began
    return made

  def fetch(self, made: Any, what: str) -> Any:
    """What a step made, on the host, on every process."""
    began = time.perf_counter()
    made = processes.fetch(made)
    self.seconds[what] += time.perf_counter() - began
    return made

  @functools.cached_property
  def _boxed(self) -> Any:
    """The weights' names, which say where they lie on a mesh."""
    if self.mesh is None:
      return None
    return place.abstract(Transformer(self.cfg), dummy_inputs(self.cfg))

  @functools.cached_property
  def _empty(self) -> Callable[[], Memory]:
    """Makes blank pages, each device its own."""
    c = self.config

    def make() -> Memory:
      one = lambda cfg: caches.paged(cfg, c.pages, c.page, self.stored)
      modules = isinstance(self.drafting, Modules)
      return Memory(one(self.cfg), module_caches(self.cfg, one) if modules else ())

    if self.mesh is None:
      return jax.jit(make)
    return jax.jit(make, out_shardings=caches.shardings(self.mesh, jax.eval_shape(make)))
