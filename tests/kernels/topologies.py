"""TPUs to compile for where there are none: libtpu brings their compiler (`pip install libtpu`).

Tests that use it are marked tpu_aot. Memory that does not suffice, on the chip or in a kernel, is
an error of the compilation; "compiles" says nothing of results or speed.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.experimental import topologies

# Eight chips each; with `megacore` a device of v4 is a chip of two cores, not a core.
CHIPS = {
  'v4': ('v4:2x2x2', {'chip_config_name': 'megacore'}),
  'v5p': ('v5p:2x2x2', {}),
  'v6e': ('v6e:2x4', {}),
}

# libtpu looks for the machine it runs on, unless told; and lets in one process at a time.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v4-8',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def chips(name: str) -> list[jax.Device]:
  """The devices of a small topology of v4, v5p or v6e, to compile for."""
  pytest.importorskip('libtpu', reason='compiling for TPUs needs `pip install libtpu`')
  os.environ.update(ENVIRONMENT)
  topology, options = CHIPS[name]
  return list(topologies.get_topology_desc(topology, 'tpu', **options).devices)


def compiled(f: Callable, device: jax.Device, *args: Any, donate: tuple = ()) -> Any:
  """`f` compiled for one device; arguments are arrays or their shapes."""
  place = jax.sharding.SingleDeviceSharding(device)
  args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
  # What is cached on disk could not be read back without a device.
  patience = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', float('inf'))
  try:
    return jax.jit(f, donate_argnums=donate).lower(*args).compile()
  finally:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', patience)


def vmem(program: Any) -> list[tuple[str, float]]:
  """The Mosaic kernels of a program, in order, and the MiB of vector memory that each takes."""
  call = r'%(\w+)[\w.]* = [^\n]*"tpu_custom_call"(.*?)(?=\n *%|\n *ROOT|\Z)'
  size = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
  found = re.findall(call, program.as_text(), re.DOTALL)
  used = ((name, re.search(size, rest)) for name, rest in found)
  return [(name, round(int(n[1]) / 2**20, 2)) for name, n in used if n]
