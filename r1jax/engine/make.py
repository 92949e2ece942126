"""The engine that a config asks for."""

import jax

from r1jax.core.errors import UserError
from r1jax.core.program import Announce, silent
from r1jax.engine.batch import Batches, Paged, Static
from r1jax.engine.drafts import Modules
from r1jax.engine.engine import Engine
from r1jax.model.config import ModelConfig

EngineSpec = Paged | Static
AnyEngine = Batches | Engine


def check(spec: EngineSpec, cfg: ModelConfig) -> None:
  """UserError for an engine that this model cannot have."""
  if isinstance(spec, Paged) and isinstance(spec.drafting, Modules) and not cfg.mtp:
    raise UserError(
      'engine.drafting is Modules, but the model has no prediction modules (model.mtp): set NGram'
    )


def make(
  spec: EngineSpec,
  cfg: ModelConfig,
  stops: tuple[int, ...],
  mesh: jax.sharding.Mesh | None = None,
  announce: Announce = silent,
  routes: bool = False,
) -> AnyEngine:
  """Both are called alike: (params, prompts, lengths, keys, sampling, limit) -> Samples.

  routes: whether samples hold what the model chose for each position, experts and keys, for replay.
  """
  check(spec, cfg)
  match spec:
    case Paged():
      return Batches(spec, cfg, tuple(stops), mesh, announce, routes=routes)
    case Static():
      return Engine(cfg, stops, mesh, announce, routes)
