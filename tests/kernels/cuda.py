"""Mosaic GPU kernels without a GPU: in jax's interpreter, and lowered for an H200."""

import contextlib

import jax
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # private until 0.12

from r1jax.sharding.mesh import AXES

INTERPRET = InterpretGPUParams(detect_races=True)


def without_races(kernel, *args):
  """Runs one interpreted kernel to its end, alone: its threads block those of XLA."""
  out = jax.block_until_ready(jax.jit(kernel)(*args))
  assert not interpret_pallas_call.get_races().races_found
  return out


def lowered(f, *args):
  """The text of a program for an H200: layouts and shared memory are checked on the way."""
  with h200():
    return jax.jit(f).trace(*args).lower(lowering_platforms=('cuda',)).as_text()


@contextlib.contextmanager
def h200():
  """What lowering without a GPU asks for: newer jax takes the architecture from the mesh."""
  if hasattr(jax.sharding, 'AbstractDevice'):
    device = jax.sharding.AbstractDevice('NVIDIA H200', 132, 'gpu')
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, auto, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      yield
  else:
    yield
