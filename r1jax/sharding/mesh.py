"""The device mesh, from a table of axes.

`data` (slow network), `fsdp` (parameters and optimizer sharded), `expert`, `context` (sequence) and
`tensor`, always all five and always in this order: an axis of size one costs nothing and spares
every caller a special case.
"""

import dataclasses
import math

import jax

from r1jax.core.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Sizes of the mesh axes; one of them may be -1: all devices that are left."""

  data: int = 1
  fsdp: int = -1
  expert: int = 1
  context: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = [getattr(self, a) for a in AXES]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
      raise ValueError(
        f'mesh axes must be positive, one of them may be -1; got {dict(zip(AXES, sizes))}'
      )


def shape(spec: Mesh, devices: int) -> tuple[int, ...]:
  """Axis sizes for this many devices, the -1 filled in."""
  sizes = [getattr(spec, a) for a in AXES]
  fixed = math.prod(s for s in sizes if s > 0)
  filled = tuple(devices // fixed if s == -1 else s for s in sizes)
  if math.prod(filled) != devices:
    raise UserError(
      f'mesh {dict(zip(AXES, sizes))} does not fit {devices} devices; '
      'choose axes whose product is the number of devices (one axis may be -1)'
    )
  return filled


def make(spec: Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
  """Builds the mesh; its axes are all of type Auto (jax's default is Explicit)."""
  devices = jax.devices() if devices is None else devices
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape(spec, len(devices)), AXES, axis_types=auto, devices=devices)
