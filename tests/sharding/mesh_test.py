"""Meshes from a table of axes."""

import jax
import pytest

from r1jax.core.errors import UserError
from r1jax.sharding import mesh
from r1jax.sharding.mesh import Mesh


@pytest.mark.parametrize(
  'spec, devices, expected',
  [
    (Mesh(), 8, (1, 8, 1, 1, 1)),
    (Mesh(), 1, (1, 1, 1, 1, 1)),
    (Mesh(fsdp=2, expert=2, tensor=2), 8, (1, 2, 2, 1, 2)),
    (Mesh(data=-1, fsdp=2, context=2), 8, (2, 2, 1, 2, 1)),
    (Mesh(fsdp=4, tensor=-1), 4, (1, 4, 1, 1, 1)),
  ],
)
def test_shape_fills_the_open_axis(spec, devices, expected):
  assert mesh.shape(spec, devices) == expected


@pytest.mark.parametrize(
  'spec, devices', [(Mesh(fsdp=3), 8), (Mesh(fsdp=1), 8), (Mesh(fsdp=16, tensor=-1), 8)]
)
def test_a_mesh_that_does_not_fit_names_its_axes_and_the_devices(spec, devices):
  with pytest.raises(UserError, match=rf"mesh .*'fsdp': {spec.fsdp}.* does not fit 8 devices"):
    mesh.shape(spec, devices)


@pytest.mark.parametrize('sizes', [{'data': -1}, {'tensor': 0}, {'expert': -2}])
def test_sizes_are_positive_and_one_may_be_open(sizes):
  with pytest.raises(ValueError, match=r"must be positive, one of them may be -1; got {'data'"):
    Mesh(**sizes)


def test_make_orders_the_axes_and_leaves_the_partitioning_to_xla():
  made = mesh.make(Mesh(fsdp=2, expert=2, tensor=2))
  assert dict(made.shape) == dict(zip(mesh.AXES, (1, 2, 2, 1, 2)))
  assert made.axis_names == mesh.AXES
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}
  assert mesh.make(Mesh(), jax.devices()[:2]).shape['fsdp'] == 2
